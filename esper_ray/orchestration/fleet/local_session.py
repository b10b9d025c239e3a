"""The folder of a local Ray's files: its path is short enough for Ray's sockets, and it has its own token."""

import logging
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

from esper_ray.errors import ConfigurationError

logger = logging.getLogger(__name__)

_LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107
"""Bytes of the path of a Unix socket."""
_BEHIND_TMPDIR = len("/esper-01234567/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
LONGEST_TMPDIR = _LONGEST_SOCKET - _BEHIND_TMPDIR
_TOKEN_FILE = "auth_token"
_VARIABLES = ("RAY_TMPDIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
"""Variables that a session sets; Ray itself sets the mode."""


def make_session_folder() -> Path:
    """Makes a folder that only this user may enter: in TMPDIR, or in /tmp if Ray's sockets do not fit into that.

    Raises:
        ConfigurationError: neither can be used.
    """
    try:
        wanted = Path(tempfile.gettempdir()).resolve()
    except FileNotFoundError as error:
        raise ConfigurationError(f"{error.strerror}; set TMPDIR to a folder that can be written") from None
    usable = [folder for folder in (wanted, *_other_folders()) if _fits(folder)]
    if not usable:
        raise ConfigurationError(
            f"Ray's sockets do not fit into {wanted}: set TMPDIR to a folder of at most {LONGEST_TMPDIR} bytes, all of "
            "them ASCII"
        )
    if usable[0] != wanted:
        logger.warning(
            "Ray's files lie in %s: %s is not ASCII or longer than %d bytes", usable[0], wanted, LONGEST_TMPDIR
        )
    return Path(tempfile.mkdtemp(prefix="esper-", dir=usable[0]))


def _other_folders() -> list[Path]:
    named = [Path("/tmp"), Path(os.environ.get("XDG_RUNTIME_DIR", "/tmp"))]
    return [folder.resolve() for folder in named if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)]


def _fits(folder: Path) -> bool:
    return str(folder).isascii() and len(str(folder)) <= LONGEST_TMPDIR


@contextmanager
def session_environment(session: Path) -> Iterator[None]:
    """Has Ray's token and Ray Tune's lock files lie in the session's folder, not to stay for good.

    By itself Ray would leave a token in the user's home, and need a home to leave it in. A token that the environment
    names may be of another session, which ends before this one.
    """
    token = session / _TOKEN_FILE
    token.write_text(secrets.token_hex(32))
    before = {name: os.environ.get(name) for name in _VARIABLES}
    os.environ.pop("RAY_AUTH_TOKEN", None)  # it would come first
    os.environ.update({"RAY_TMPDIR": str(session), "RAY_AUTH_TOKEN_PATH": str(token)})
    _forget_token()
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        _forget_token()


def _forget_token() -> None:
    """Has Ray read mode and token from the environment again; first the mode, since "token" cannot be without one."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
