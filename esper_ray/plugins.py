"""Plugins: modules of a user, imported for the hosts, blueprints, data sources and tasks that they register."""

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from pydantic import ValidationError

from esper_ray.errors import ConfigurationError, setting_error
from esper_ray.user_code import remember_code

_LOADED: dict[str, None] = {}
"""Names of the plugins of this process, in the order in which they were loaded."""


def load_plugins(names: Iterable[str]) -> None:
    """Imports the modules, each once. The working folder is searched as well, as by `python -m`.

    Raises:
        ConfigurationError: one cannot be found, raises while it is imported, or defines something with a setting that
            is not valid.
    """
    names = list(names)
    here = str(Path.cwd())
    if names and here not in sys.path:
        sys.path.insert(0, here)
    for name in names:
        try:
            module = importlib.import_module(name)
        except ValidationError as error:
            raise ConfigurationError(
                f"plugin '{name}': {setting_error(error)} (a task that a function with @register_task returns does "
                "not keep the others from loading)"
            ) from error
        except ConfigurationError as error:
            raise ConfigurationError(f"plugin '{name}': {error}") from error
        except (Exception, SystemExit) as error:
            reason = " ".join(str(error).split())
            raise ConfigurationError(
                f"plugin '{name}' does not import: {type(error).__name__}: {reason}; expected a module such as "
                "my_package.my_module, in the working folder, installed or on PYTHONPATH"
            ) from error
        if getattr(module, "__file__", None) is None:
            raise ConfigurationError(
                f"plugin '{name}' is no file of Python; name a module such as my_package.my_module"
            )
        _LOADED[name] = None
        remember_code(module)


def loaded_plugins() -> list[ModuleType]:
    """Returns the plugins that this process has loaded."""
    return [sys.modules[name] for name in _LOADED if name in sys.modules]


def require_outside_folder(names: Iterable[str], folder: Path) -> None:
    """Refuses plugins that lie in `folder`: a run or checkpoint of someone else must not bring its own code.

    Raises:
        ConfigurationError: it names the plugin.
    """
    roots = [Path.cwd(), *map(Path, sys.path)]
    for name in names:
        if any((root / name.replace(".", "/")).resolve().is_relative_to(folder.resolve()) for root in roots):
            raise ConfigurationError(
                f"plugin '{name}' lies in {folder}, which names it: nothing in there is run; move it elsewhere if you "
                "trust it"
            )


def is_redefinition(known: object, new: object) -> bool:
    """Returns whether two functions or classes are the same definition, run again: a notebook cell, a second import."""
    return _where_defined(known) == _where_defined(new)


def _where_defined(thing: object) -> tuple[object, object]:
    return getattr(thing, "__module__", None), getattr(thing, "__qualname__", thing)


def shipped_paths(names: Iterable[str]) -> list[str]:
    """Returns the files and top-level folders of loaded plugins that other machines do not have: all not installed."""
    paths = dict.fromkeys(_top_path(name) for name in names)
    return [str(path) for path in paths if not {"site-packages", "dist-packages"} & set(path.parts)]


def _top_path(name: str) -> Path:
    module = sys.modules[name]
    assert module.__file__ is not None, "a plugin is a file"
    path = Path(module.__file__)
    if hasattr(module, "__path__"):
        path = path.parent  # a package's file lies inside it
    return path.parents[name.count(".") - 1] if "." in name else path
