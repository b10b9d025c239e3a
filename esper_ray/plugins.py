"""Modules of a user's own, imported for what they register: hosts, blueprints, data sources, tasks."""

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from esper_ray.errors import ConfigurationError


def load_plugins(names: Iterable[str]) -> None:
    """Imports the modules, each once. The working folder is searched as well, as by `python -m`.

    Raises:
        ConfigurationError: one cannot be found, or raises while it is imported.
    """
    names = list(names)
    here = str(Path.cwd())
    if names and here not in sys.path:
        sys.path.insert(0, here)
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ConfigurationError(
                f"plugin '{name}' does not import: {type(error).__name__}: {reason}; expected a module such as "
                "my_package.my_module, in the working folder, installed or on PYTHONPATH"
            ) from error


def shipped_modules(names: Iterable[str]) -> list[ModuleType]:
    """Returns the top-level packages of loaded plugins that other machines do not have: all but the installed ones."""
    tops = {name.partition(".")[0]: importlib.import_module(name.partition(".")[0]) for name in names}
    return [module for module in tops.values() if not _is_installed(module)]


def _is_installed(module: ModuleType) -> bool:
    where = module.__file__ or next(iter(getattr(module, "__path__", [])), "")
    return bool({"site-packages", "dist-packages"} & set(Path(where).parts))
