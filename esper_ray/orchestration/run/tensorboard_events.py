"""The numbers of a run for TensorBoard.

tensorboardX's own writer hands events to a thread over a queue of ten: where that thread ends, as by a full disk, the
eleventh event waits for ever. Here they are written at once, and kept for the next time where that is not possible.
"""

import logging
import socket
import struct
import time
from collections.abc import Iterable
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import scalar

from esper_ray.orchestration.run.append_file import AppendFile

logger = logging.getLogger(__name__)

_FORMAT = "brain.Event:2"


class TensorBoardEvents:
    """Writes an event file into a folder.

    Args:
        folder: of the run.
        first_step: TensorBoard hides what earlier files of the folder hold of this step and later ones.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        now = time.time()
        self._file = AppendFile(folder / f"events.out.tfevents.{int(now)}.{socket.gethostname()}")
        self._is_waiting = False
        start = SessionLog(status=SessionLog.START)
        self._pending = _record(Event(wall_time=now, step=first_step, file_version=_FORMAT))
        self._pending += _record(Event(wall_time=now, step=first_step, session_log=start))

    def add(self, numbers: Iterable[tuple[str, float]], step: int) -> None:
        """Writes named numbers; where that is not possible they come with the next ones."""
        now = time.time()
        for name, value in numbers:
            self._pending += _record(Event(wall_time=now, step=step, summary=scalar(name, value)))
        try:
            self._file.append(self._pending)
        except OSError as error:
            if not self._is_waiting:
                logger.warning("the numbers for TensorBoard wait for room in %s: %s", self._file.path, error.strerror)
            self._is_waiting = True
        else:
            self._pending, self._is_waiting = b"", False

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _record(event: Event) -> bytes:
    """Returns an event in TFRecord's frame: length and content, each with its checksum."""
    content = event.SerializeToString()
    length = struct.pack("<Q", len(content))
    frame = length + struct.pack("<I", masked_crc32c(length)) + content
    return bytes(frame + struct.pack("<I", masked_crc32c(content)))
