"""A disk that is full, really: what was written stays good, the reason is said, nothing is half there."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from driver import SETTINGS, command, ended, half_written, results, wait_until, whole_rows
from fast_tasks import make_fast_task
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from esper_ray.episode import MorphogenesisEnv
from esper_ray.episode.rollout import play_episode
from esper_ray.errors import RunFolderError
from esper_ray.orchestration.fleet.host_checkpoint import EpisodeSoFar, HostCheckpoints
from esper_ray.orchestration.fleet.tickets import FinishedEpisode, Ticket
from esper_ray.orchestration.held_out.episode_store import EpisodeStore
from esper_ray.orchestration.run.checkpoint import read_manifest
from esper_ray.orchestration.run.kept_hosts import KeptHosts, kept_episodes, load_kept_host
from esper_ray.orchestration.run.run_folder import RunFolder, checkpoints_of, has_ended, iteration_of, read_config
from esper_ray.orchestration.run.tensorboard_events import TensorBoardEvents
from esper_ray.policies import RandomPolicy

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("no_ray")]

FULL = "No space left on device"


class Disk:
    """A file system in memory, of a size of its own.

    Attributes:
        path: where it is, for every process of this machine.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self, free: int = 0) -> None:
        """Fills it up to so many free bytes, in whole pages."""
        room = os.statvfs(self.path)
        with self._ballast.open("ab") as file:
            file.write(b"x" * max(0, room.f_bavail * room.f_frsize - free))

    def clear(self) -> None:
        """Makes room again."""
        self._ballast.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of 8 MB, in a name space of its own, which ends with the process that holds it."""
    (tmp_path / "disk").mkdir()
    mount = 'mount -t tmpfs -o size=8m tmpfs "$0" && echo mounted && exec sleep infinity'
    holder = subprocess.Popen(["unshare", "-rm", "sh", "-c", mount, str(tmp_path / "disk")], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    try:
        if holder.stdout.readline() != b"mounted\n":
            pytest.skip("this system lets nobody mount a tmpfs, not even in a name space of one's own")
        yield Disk(Path(f"/proc/{holder.pid}/root") / (tmp_path / "disk").relative_to("/"))
    finally:
        holder.kill()
        holder.communicate()


@pytest.fixture(scope="module")
def episodes() -> list[FinishedEpisode]:
    """Episodes with the weights of what they kept."""
    env, found = MorphogenesisEnv(make_fast_task()), []
    for number in range(3):
        record = play_episode(env, RandomPolicy(), number)
        found.append(FinishedEpisode(Ticket(1, number, number, number), record, env.run.model.kept_weights()))
    return found


def write_pages(write: Callable[[int], None]) -> None:
    """Writes more than a page, the last of which a full disk still has room in."""
    for number in range(2, 9):
        write(number)


# --- a whole run --------------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("nothing_left_behind")
def test_a_disk_that_fills_up_during_a_run_ends_it_cleanly_and_with_room_it_comes_to_the_same(
    undisturbed_run: Path, disk: Disk
) -> None:
    """First the checkpoints do not fit any more, and the run goes on without; then the rows do not, and it ends."""
    out = disk.path / "run"
    process = subprocess.Popen(
        command("train", "--out", out, *SETTINGS), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: len(checkpoints_of(out)) >= 3, process)
    disk.fill(free=48 * 1024)
    printed, errors = process.communicate(timeout=200)

    assert process.returncode == 2
    assert "Traceback" not in printed + errors
    said = [line for line in errors.splitlines() if "for TensorBoard wait for room" not in line]
    assert len(said) == 1
    ending = rf"esper-ray: \S+\.jsonl cannot be written: {FULL}; mend that, then go on with --resume {out}"
    assert re.fullmatch(ending, said[0])
    last = checkpoints_of(out)[-1]
    assert "warning: the checkpoint of iteration" in printed
    assert f"the last one is {last.name}" in printed
    assert read_manifest(last).iteration < len(whole_rows(out / "metrics.jsonl"))
    assert half_written(out) == []

    disk.clear()
    resumed = ended("train", "--resume", out)
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert read_config(out)["went_on"][0]["iteration"] == iteration_of(last)
    assert results(out) == results(undisturbed_run)


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("nothing_left_behind")
def test_on_a_disk_that_is_full_from_the_start_a_run_says_so_and_leaves_nothing(disk: Disk) -> None:
    disk.fill()
    refused = ended("train", "--out", disk.path / "run", *SETTINGS)
    assert refused.returncode == 2
    assert refused.stderr.startswith("esper-ray: ") and refused.stderr.count("\n") == 1 and FULL in refused.stderr
    assert [path for path in disk.path.rglob("*") if path.is_file()] == [disk.path / "ballast"]


# --- everything that is written -----------------------------------------------------------------------------------


def test_a_checkpoint_that_does_not_fit_leaves_the_earlier_one(disk: Disk) -> None:
    def save(folder: Path) -> None:
        save_file({"weights": torch.ones(50_000)}, folder / "weights.safetensors")

    with RunFolder(disk.path / "run", {}) as folder:
        first = folder.save_checkpoint(1, save)
        disk.fill(free=64 * 1024)
        with pytest.raises(RunFolderError, match=r"2 could not be written: .*; the last one is iteration_000001"):
            folder.save_checkpoint(2, save)
        assert folder.checkpoints() == [first]
        assert [path.stat().st_size > 200_000 for path in first.iterdir()] == [True]
        assert half_written(disk.path) == []
        disk.clear()
        assert iteration_of(folder.save_checkpoint(2, save)) == 2


def test_a_row_that_does_not_fit_is_not_there_and_does_not_stand_in_the_way_of_the_end(
    disk: Disk, episodes: list[FinishedEpisode]
) -> None:
    out = disk.path / "run"
    with RunFolder(out, {}) as folder:
        folder.add_episode(1, 1, episodes[0])
        folder.add_iteration({"iteration": 1})
        disk.fill()
        with pytest.raises(RunFolderError, match=rf"episodes.jsonl cannot be written: {FULL}; mend that, then go on"):
            write_pages(lambda number: folder.add_episode(number, 2, episodes[1]))
        with pytest.raises(RunFolderError, match=r"metrics.jsonl cannot be written"):
            folder.add_iteration({"iteration": 2, "long": "x" * 9000})
    for file in ("episodes.jsonl", "metrics.jsonl"):
        assert (out / file).read_text().endswith("}\n")
        assert json.loads((out / file).read_text().splitlines()[0])["iteration"] == 1


def test_no_summary_means_that_the_run_can_go_on(disk: Disk) -> None:
    with RunFolder(disk.path / "run", {}) as folder:
        disk.fill()
        with pytest.raises(RunFolderError, match=f"summary.json cannot be written: {FULL}"):
            folder.write_summary({"interrupted": False})
    assert not has_ended(disk.path / "run")
    assert half_written(disk.path) == []


def test_a_run_that_goes_on_on_a_full_disk_loses_nothing_and_can_be_tried_again(
    disk: Disk, episodes: list[FinishedEpisode]
) -> None:
    out = disk.path / "run"
    with RunFolder(out, {"written": "before"}) as folder:
        folder.add_episode(1, 1, episodes[0])
        folder.add_iteration({"iteration": 1})
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    disk.fill()
    with pytest.raises(RunFolderError, match=FULL):
        RunFolder(out, {"written": "after"}, keep_iterations=1)
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    disk.clear()
    with RunFolder(out, {"written": "after"}, keep_iterations=1):
        assert json.loads((out / "config.json").read_text()) == {"written": "after"}


def test_a_host_that_does_not_fit_is_not_kept_and_the_others_are(disk: Disk, episodes: list[FinishedEpisode]) -> None:
    folder = disk.path / "hosts"
    kept = KeptHosts(folder, 2)
    kept.offer(1, episodes[0])
    disk.fill()
    with pytest.raises(RunFolderError, match=rf"episode_000002.safetensors cannot be written: {FULL}"):
        kept.offer(2, episodes[1])
    assert kept_episodes(folder) == [1]
    assert load_kept_host(folder, 1).keys() == (episodes[0].weights or {}).keys()
    assert half_written(folder) == []
    disk.clear()
    kept.offer(3, episodes[2])
    assert kept_episodes(folder) == [1, 3]


def test_what_tensorboard_missed_comes_when_there_is_room(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    events = TensorBoardEvents(disk.path, first_step=1)
    events.add([("score", 0.5)], 1)
    disk.fill()
    for step in range(2, 500):  # more than fit into the last page
        events.add([("score", step / 2)], step)
    (warning,) = caplog.messages
    assert warning.startswith("the numbers for TensorBoard wait for room") and warning.endswith(FULL)
    disk.clear()
    events.add([("score", 250.0)], 500)
    events.close()
    (file,) = disk.path.glob("events.out.tfevents.*")
    shown = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload().Scalars("score")
    assert [(event.step, event.value) for event in shown] == [(step, step / 2) for step in range(1, 501)]


def test_an_evaluation_keeps_the_episodes_that_it_has(disk: Disk, episodes: list[FinishedEpisode]) -> None:
    with EpisodeStore(disk.path / "held_out", {}) as store:
        store.add("greedy", episodes[0])
        disk.fill()
        with pytest.raises(RunFolderError, match="the same command then goes on"):
            write_pages(lambda _number: store.add("greedy", episodes[1]))
    disk.clear()
    with EpisodeStore(disk.path / "held_out", {}) as store:
        assert store.has("greedy", 0)


def test_an_episode_in_progress_that_does_not_fit_is_let_be(disk: Disk) -> None:
    checkpoints = HostCheckpoints(disk.path, b"key", every=1)
    episode = EpisodeSoFar(Ticket(1, 0, 0, 0), start=None, state=b"x" * 9000)
    disk.fill()
    checkpoints.write(episode)
    assert checkpoints.read(episode.ticket) is None
    assert half_written(disk.path) == []
    disk.clear()
    checkpoints.write(episode)
    assert checkpoints.read(episode.ticket) == episode


# --- what Numba compiles ------------------------------------------------------------------------------------------


def test_where_there_is_no_room_for_what_is_compiled_hosts_train_all_the_same(disk: Disk) -> None:
    code = "from esper_ray.models import pooled_norm_kernels; print(pooled_norm_kernels.forward.signatures != [])"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(disk.path / "numba")}
    (disk.path / "numba").mkdir()
    disk.fill()
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (answer.stdout, answer.stderr) == ("True\n", "")
    disk.clear()
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (answer.stdout, answer.stderr) == ("True\n", "")
    assert list((disk.path / "numba").rglob("*.nbi"))
