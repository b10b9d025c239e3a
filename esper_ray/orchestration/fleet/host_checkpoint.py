"""Episodes in progress on disk, from which the replacement of a lost actor continues.

What the policy was shown and answered is kept with the host. A replacement shows it the same again, and trains on from
where the host was. The files hold pickles: each carries a signature with a key that only the actors of the run know,
and is read by no one else.
"""

import hashlib
import hmac
import logging
import pickle
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esper_ray.orchestration.fleet.tickets import Ticket

logger = logging.getLogger(__name__)

_SIGNATURE_BYTES = hashlib.sha256().digest_size


@dataclass
class EpisodeSoFar:
    """The saved state of an episode in progress.

    Attributes:
        ticket: the episode.
        start: what `reset` returned.
        steps: for each step so far the action, and what `step` returned.
        state: of the environment after the last of them, see `MorphogenesisEnv.state`; None before any was saved.
    """

    ticket: Ticket
    start: Any
    steps: list[tuple[int, Any]] = field(default_factory=list)
    state: bytes | None = None


class HostCheckpoints:
    """Reads and writes episodes in progress.

    Args:
        folder: one that all actors of a machine see; where it is missing, nothing is written.
        key: secret of the run.
        every: host epochs between two of them.
    """

    def __init__(self, folder: Path, key: bytes, every: int) -> None:
        self._folder = folder
        self._key = key
        self.every = every

    def read(self, ticket: Ticket) -> EpisodeSoFar | None:
        """Returns the saved state of an episode; None if there is none that this run has written."""
        try:
            content = self._path(ticket).read_bytes()
        except OSError:
            return None
        signature, pickled = content[:_SIGNATURE_BYTES], content[_SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._sign(pickled)):
            return None
        found: EpisodeSoFar = pickle.loads(pickled)
        return found if found.ticket == ticket else None

    def write(self, episode: EpisodeSoFar) -> None:
        """Writes an episode in progress atomically: to a temporary name, which is then renamed.

        Where that is not possible, as on a full disk, it lets the episode be: a replacement would begin it again.
        """
        if not self._folder.is_dir():
            return
        pickled = pickle.dumps(episode)
        partial = self._path(episode.ticket).with_suffix(".writing")
        try:
            partial.write_bytes(self._sign(pickled) + pickled)
            partial.rename(self._path(episode.ticket))
        except OSError as error:
            logger.warning("an episode in progress could not be written to %s: %s", self._folder, error.strerror)
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def remove(self, ticket: Ticket) -> None:
        """Deletes the saved state of an episode."""
        self._path(ticket).unlink(missing_ok=True)

    def _path(self, ticket: Ticket) -> Path:
        name = hashlib.sha256(repr(ticket).encode()).hexdigest()[:16]
        return self._folder / f"{name}.episode"

    def _sign(self, content: bytes) -> bytes:
        return hmac.digest(self._key, content, "sha256")
