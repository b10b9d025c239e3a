"""Starts a local Ray for the duration of a run and removes all of it afterwards, or joins a cluster."""

import logging
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError, RayError, RayTaskError, RuntimeEnvSetupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import esper_ray
from esper_ray.errors import ConfigurationError, EsperError, PlacementError
from esper_ray.orchestration.fleet.local_session import make_session_folder, session_environment
from esper_ray.orchestration.fleet.session_guard import guarded
from esper_ray.plugins import load_plugins, shipped_paths

_SECONDS_TO_ANSWER = 5.0
_SETTINGS_FRAME = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""An empty HTTP/2 frame; its fourth byte is the kind."""
_TOOK_TOO_LONG = re.compile(r"timed? ?out|took too long|overloaded", re.IGNORECASE)
_QUIET = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "PYTHONWARNINGS": "ignore",
}


@contextmanager
def ray_for(address: str | None, plugins: Sequence[str] = ()) -> Iterator[None]:
    """Joins the Ray cluster at `address` for the duration of a run, or starts a local Ray if no address is given.

    A cluster gets this package's source and the plugins'; what they import must be installed there.

    Raises:
        ConfigurationError: no cluster answers, or a plugin does not import inside it.
    """
    if address is None:
        with local_ray(plugins=plugins):
            yield
        return
    quiet_logging()
    if ray.is_initialized():
        raise ConfigurationError("this process is connected to a Ray already, and plays there; leave out --address")
    named = os.environ.get("RAY_ADDRESS") or "auto" if address == "auto" else address
    _require_answer(named)
    _require_accepted(named)
    package = str(Path(esper_ray.__file__).parent)
    try:
        with _without_stderr():
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"py_modules": [package, *shipped_paths(plugins)]},
            )
    except RuntimeEnvSetupError as error:
        raise ConfigurationError(f"the code cannot be sent to the cluster: {' '.join(str(error).split())}") from error
    except AuthenticationError as error:
        raise _refused(address) from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigurationError(f"--address {address}: no Ray cluster answers there ({_first_line(error)})") from error
    try:
        _require_importable(plugins)
        yield
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Refuses an address where no Ray listens; Ray itself would try for minutes.

    Raises:
        ConfigurationError: it is no HOST:PORT, or nobody answers there as Ray would.
    """
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or "://" in address:
        raise ConfigurationError(f"--address {address}: expected HOST:PORT or auto")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _SECONDS_TO_ANSWER) as connection:
            speaks = _speaks_http2(connection)
    except (OSError, OverflowError) as error:
        raise ConfigurationError(f"--address {address}: no Ray cluster answers there ({error})") from None
    if not speaks:
        raise ConfigurationError(f"--address {address}: what answers there is no Ray cluster")


def _require_accepted(address: str) -> None:
    """Refuses a cluster that does not take this user's token, if any; Ray itself would try for half a minute.

    Raises:
        ConfigurationError: the token is missing, or another one.
    """
    if address == "auto":
        return
    try:
        with _without_stderr():
            GcsClient(address=address)
    except AuthenticationError as error:
        raise _refused(address) from error
    except (RayError, RuntimeError, ValueError):  # that no cluster answers is said by who connects to it
        return


def _refused(address: str) -> ConfigurationError:
    return ConfigurationError(
        f"--address {address}: the cluster refuses this user's token, or the lack of one; set RAY_AUTH_MODE=token, and "
        "RAY_AUTH_TOKEN_PATH to a file with the cluster's token, by default ~/.ray/auth_token of who started it"
    )


def _speaks_http2(connection: socket.socket) -> bool:
    """Returns whether the server sends HTTP/2 SETTINGS first (RFC 9113, section 3.4), as every gRPC server does."""
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return True  # the greeting is encrypted
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _SETTINGS_FRAME)
    greeting = b""
    while len(greeting) < len(_SETTINGS_FRAME) and (more := connection.recv(len(_SETTINGS_FRAME) - len(greeting))):
        greeting += more
    return greeting[3:4] == _SETTINGS_FRAME[3:4]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def quiet_logging() -> None:
    """Keeps Ray and RLlib from writing to the terminal."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    for name in ("ray", "ray.rllib", "ray.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def local_ray(num_cpus: int | None = None, num_gpus: int | None = None, plugins: Sequence[str] = ()) -> Iterator[None]:
    """Uses the Ray that this process is connected to, or else starts a local one and ends it afterwards.

    Nothing of a local one stays, not even if this process is killed (`session_guard`).

    Args:
        num_cpus, num_gpus: what a new local Ray offers; None: what the machine has.
        plugins: loaded modules that actors will import. A new Ray gets their source; one that runs already must have
            them, or have been started with `plugin_environment`.

    Raises:
        ConfigurationError: a plugin does not import inside Ray, or there is no folder that Ray's sockets fit into.
        PlacementError: Ray does not start, as on a machine that has too much to do.
    """
    if ray.is_initialized():
        _require_importable(plugins)
        yield
        return
    quiet_logging()
    session = make_session_folder()
    with guarded(session), session_environment(session):
        try:
            _start(session, num_cpus, num_gpus, plugins)
            _require_importable(plugins)
            yield
        finally:
            ray.shutdown()
            shutil.rmtree(session, ignore_errors=True)


def _start(session: Path, num_cpus: int | None, num_gpus: int | None, plugins: Sequence[str]) -> None:
    try:
        with _without_stderr():
            ray.init(
                address="local",  # or else Ray would join what RAY_ADDRESS names
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=plugin_environment(plugins),
                _temp_dir=str(session),
            )
    except RuntimeEnvSetupError as error:
        raise ConfigurationError(f"the plugins cannot be sent to the actors: {' '.join(str(error).split())}") from error
    except Exception as error:  # Ray raises a bare one where its daemons take too long
        reason = " ".join(str(error).split()) or type(error).__name__
        advice = "; try again when this machine has less to do" if _TOOK_TOO_LONG.search(reason) else ""
        raise PlacementError(f"Ray could not be started: {reason.rstrip('.')}{advice}") from error


def plugin_environment(plugins: Sequence[str]) -> dict[str, Any] | None:
    """Returns the Ray runtime environment that carries the plugins' source to every machine; None without any."""
    paths = shipped_paths(plugins)
    return {"py_modules": paths} if paths else None


def _require_importable(plugins: Sequence[str]) -> None:
    """Imports the plugins once on every machine of the cluster."""
    if plugins:
        on_every_machine(load_plugins, list(plugins))


def on_every_machine(function: Callable[..., Any], *arguments: Any) -> None:
    """Calls a function once on every machine of the cluster, in a process of its own.

    A machine that dies meanwhile, or whose death Ray had not noticed yet, is none of the cluster's any more.

    Raises:
        ConfigurationError: it raised on one of them; with its message.
    """
    task = ray.remote(num_cpus=0)(function)
    places = {node: NodeAffinitySchedulingStrategy(node, soft=False) for node in _machines()}
    calls = {node: task.options(scheduling_strategy=place).remote(*arguments) for node, place in places.items()}
    for node, call in calls.items():
        try:
            ray.get(call)
        except RayError as error:
            if not isinstance(error, RayTaskError) and node not in _machines():
                continue
            cause = getattr(error, "cause", None)
            reason = cause if isinstance(cause, EsperError) else " ".join(str(error).split())
            raise ConfigurationError(f"inside the actors: {reason}") from error


def _machines() -> list[str]:
    """Ids of the nodes that Ray takes for alive."""
    return [node["NodeID"] for node in ray.nodes() if node["Alive"]]


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Discards the output of Ray's C++ part to standard error; its failures still raise."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
