"""YAML files of settings: a user's own, and the shipped ones by name."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from esper_ray.errors import ConfigurationError, unknown_name
from esper_ray.orchestration.config import TrainConfig
from esper_ray.shell import pasteable

_Model = TypeVar("_Model", bound=BaseModel)
_SHIPPED = Path(__file__).parents[1] / "tune_configs"


def load_config(path: Path, model: type[TrainConfig] = TrainConfig) -> TrainConfig:
    """Reads a YAML file of training settings, or a shipped one, for `train` or, with its model, for `plan`.

    Raises:
        ConfigurationError: the file cannot be read, a key is unknown (the nearest is named), or a value is not valid.
    """
    where = f"--config {path}"
    values = read_yaml(where, path)
    if "space" in values:
        raise ConfigurationError(f"{where} describes a search: {pasteable('esper-ray', 'tune', path)}")
    require_known_keys(where, values, model)
    return parse_config(where, {**values, "config": _shipped_or(path)}, model)


def read_yaml(where: str, path: Path) -> dict[str, Any]:
    """Reads a YAML file of settings, or a shipped one by its name; `where` begins the message if that fails.

    Raises:
        ConfigurationError: it cannot be read, is not YAML, or holds no settings.
    """
    file = _shipped_or(path)
    if file == path and _is_name(path) and not path.exists():
        raise ConfigurationError(f"{where} is neither a file nor a shipped one: {', '.join(shipped_files())}")
    try:
        values = yaml.safe_load(file.read_text())
    except OSError as error:
        raise ConfigurationError(f"{where} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{where} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigurationError(f"{where}: expected settings as KEY: VALUE, got {type(values).__name__}")
    return values


def shipped_files() -> dict[str, Path]:
    """Returns name → file of the shipped configurations and searches."""
    return {file.stem: file for file in sorted(_SHIPPED.glob("*.yaml"))}


def _shipped_or(path: Path) -> Path:
    """Returns the shipped file of that name; any other path, and one where a file lies, as it is."""
    return shipped_files().get(path.name, path) if _is_name(path) and not path.is_file() else path


def _is_name(path: Path) -> bool:
    return len(path.parts) == 1 and not path.suffix


def parse_config(where: str, values: dict[str, Any], model: type[_Model]) -> _Model:
    """Returns the settings that `values` give; `where` begins the message.

    Raises:
        ConfigurationError: a value is not valid.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "value_error":
            raise ConfigurationError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None
        raise ConfigurationError(f"{where}: {key}: {first['msg']}, got {first['input']!r}") from None


def require_known_keys(where: str, values: dict[str, Any], model: type[BaseModel], prefix: str = "") -> None:
    """Refuses a key that is no setting of the model.

    Raises:
        ConfigurationError: it names the nearest one.
    """
    for key, value in values.items():
        if key not in model.model_fields:
            known = [prefix + name for name in model.model_fields]
            raise ConfigurationError(f"{where}: {unknown_name('key', f'{prefix}{key}', known)}")
        inner = model.model_fields[key].annotation
        if isinstance(value, dict) and isinstance(inner, type) and issubclass(inner, BaseModel):
            require_known_keys(where, value, inner, f"{prefix}{key}.")
