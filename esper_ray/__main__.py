"""`python -m esper_ray`: the command line."""

from esper_ray.cli.main import main

if __name__ == "__main__":
    main()
