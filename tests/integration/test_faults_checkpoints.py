"""Checkpoints that are truncated, altered or foreign are refused in a line, and nothing in them is executed."""

import hashlib
import hmac
import json
import pickle
from collections.abc import Callable, Iterator
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch
from driver import refused
from safetensors.torch import load_file, save_file

from esper_ray.cli.main import run
from esper_ray.errors import CheckpointError, EsperError
from esper_ray.orchestration.config import TrainConfig
from esper_ray.orchestration.fleet.host_checkpoint import EpisodeSoFar, HostCheckpoints
from esper_ray.orchestration.fleet.tickets import Ticket
from esper_ray.orchestration.learner.learner_state import read_learner_state, require_fitting_optimizer
from esper_ray.orchestration.run.checkpoint import read_manifest
from esper_ray.orchestration.run.resume import find_resumption
from esper_ray.orchestration.run.run_folder import checkpoints_of
from esper_ray.orchestration.run.run_result import read_tally
from esper_ray.policies.network import load_policy

pytestmark = pytest.mark.faults

FILES = ["esper_ray.json", "learner.json", "learner.safetensors", "network.json", "policy.safetensors", "tally.json"]


class Bomb:
    """A pickle of it makes a file when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """The file that code in a checkpoint would make; in the end there is none."""
    yield tmp_path / "executed"
    assert not (tmp_path / "executed").exists()


@pytest.fixture
def checkpoint(killed_run: Path) -> Path:
    """Its last checkpoint."""
    return checkpoints_of(killed_run)[-1]


def truncate(file: Path, _marker: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path, _marker: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def empty(file: Path, _marker: Path) -> None:
    file.write_bytes(b"")


def remove(file: Path, _marker: Path) -> None:
    file.unlink()


def plant(file: Path, marker: Path) -> None:
    file.write_bytes(pickle.dumps(Bomb(marker)))


DAMAGES = [truncate, flip, empty, remove, plant]


# --- damage -------------------------------------------------------------------------------------------------------


def test_these_are_all_files_of_a_checkpoint(undisturbed_run: Path) -> None:
    for checkpoint in checkpoints_of(undisturbed_run):
        assert sorted(path.name for path in checkpoint.rglob("*")) == FILES


def test_the_planted_pickle_would_work(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("name", "damage"),
    [*zip(FILES, [*DAMAGES, flip], strict=True), ("learner.safetensors", plant), ("esper_ray.json", remove)],
)
def test_a_damaged_checkpoint_is_refused_and_a_run_goes_on_from_the_one_before(
    killed_run: Path,
    checkpoint: Path,
    marker: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    name: str,
    damage: Callable[[Path, Path], None],
) -> None:
    damage(checkpoint / name, marker)
    with pytest.raises(CheckpointError) as refusal:
        read_manifest(checkpoint)
    assert "\n" not in str(refusal.value) and name in str(refusal.value)
    assert name in refused(capsys, "evaluate", checkpoint)
    assert name in refused(capsys, "train", "--from-checkpoint", checkpoint, "--out", killed_run.parent / "new")
    assert not (killed_run.parent / "new").exists()

    resumption = find_resumption(TrainConfig(resume=killed_run))
    assert resumption.checkpoint == checkpoints_of(killed_run)[-2]
    (warning,) = caplog.messages
    assert name in warning and warning.endswith(f"going on from {checkpoints_of(killed_run)[-2].name}")


@pytest.mark.parametrize("damage", [truncate, empty, remove, plant])
@pytest.mark.parametrize("name", FILES[1:])
def test_what_reads_a_file_refuses_it_by_itself(
    checkpoint: Path, marker: Path, name: str, damage: Callable[[Path, Path], None]
) -> None:
    """Whatever its digest says."""
    damage(checkpoint / name, marker)
    read = {"learner": read_learner_state, "network": load_policy, "policy": load_policy, "tally": read_tally}
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.") if name != "network.json" else "damaged"):
        read[name.partition(".")[0]](checkpoint)


def test_a_run_of_which_every_checkpoint_is_damaged_never_begins_again(
    killed_run: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (killed_run / "episodes.jsonl").read_bytes()
    for checkpoint, damage in zip(checkpoints_of(killed_run), DAMAGES, strict=False):
        damage(checkpoint / "policy.safetensors", marker)
    assert "is damaged: policy.safetensors" in refused(capsys, "train", "--resume", killed_run)
    assert (killed_run / "episodes.jsonl").read_bytes() == before


def test_what_is_no_checkpoint_is_refused(
    checkpoint: Path, marker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"weights": torch.ones(3)}, tmp_path / "weights.pt")
    saved, rllib = tmp_path / "saved", tmp_path / "rllib"
    saved.mkdir()
    torch.save(Bomb(marker), saved / "policy.safetensors")
    (rllib / "learner_group").mkdir(parents=True)
    (rllib / "rllib_checkpoint.json").write_text('{"type": "Algorithm", "checkpoint_version": "2.1"}')
    for name in ("algorithm_state.pkl", "class_and_ctor_args.pkl", "learner_group/state.pkl"):
        plant(rllib / name, marker)
    for foreign in (tmp_path / "weights.pt", saved, rllib, checkpoint / "policy.safetensors", tmp_path / "nothing"):
        assert "is no checkpoint" in refused(capsys, "evaluate", foreign)
        assert "is no checkpoint" in refused(capsys, "train", "--from-checkpoint", foreign, "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()


# --- alterations that are consistent ------------------------------------------------------------------------------


def seal(checkpoint: Path, **values: object) -> None:
    """Does what someone would who alters a checkpoint and knows how it is written: all digests are right again."""
    content = json.loads((checkpoint / "esper_ray.json").read_text()) | values
    del content["sha256"]
    content["files"] = {name: hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() for name in FILES[1:]}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (checkpoint / "esper_ray.json").write_text(json.dumps({**content, "sha256": digest}))


def alter_json(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def alter_tensors(file: Path, alter: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(file)
    alter(tensors)
    save_file(tensors, file)


def test_sealing_a_checkpoint_again_changes_nothing(killed_run: Path, checkpoint: Path) -> None:
    seal(checkpoint)
    assert find_resumption(TrainConfig(resume=killed_run)).checkpoint == checkpoint


@pytest.mark.parametrize(
    "values",
    [
        *({"iteration": -1}, {"iteration": 1.5}, {"host_epochs": -1}, {"runners": 0}, {"host_pool": 0}, {"seed": -1}),
        *({"episodes_per_iteration": 0}, {"consumed": [-1]}, {"plugins": "os"}, {"more": 1}, {"task": None}),
    ],
    ids=str,
)
def test_facts_that_no_run_has_are_refused(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], values: dict[str, object]
) -> None:
    seal(checkpoint, **values)
    assert f"esper_ray.json: {next(iter(values))}" in refused(capsys, "evaluate", checkpoint)


def first_optimizer_tensor(tensors: dict[str, torch.Tensor]) -> str:
    return next(name for name in sorted(tensors) if name.endswith("exp_avg"))


UNREADABLE: dict[str, Callable[[Path], None]] = {
    "another number of iterations": lambda c: alter_json(c / "learner.json", iteration=3),
    "a negative number of iterations": lambda c: alter_json(c / "learner.json", iteration=-1),
    "a tally of another length": lambda c: alter_json(c / "tally.json", trained=[50.0]),
    "a tally with another field": lambda c: alter_json(c / "tally.json", command="rm"),
    "a network of an enormous width": lambda c: alter_json(c / "network.json", hidden=[10**9, 64]),
    "a network of a negative width": lambda c: alter_json(c / "network.json", hidden=[-64, 64]),
    "another kind of network": lambda c: alter_json(c / "network.json", kind="lstm"),
    "weights of other shapes": lambda c: alter_tensors(
        c / "policy.safetensors", lambda tensors: tensors.update({name: t[:1] for name, t in list(tensors.items())})
    ),
    "weights of other names": lambda c: alter_tensors(
        c / "policy.safetensors", lambda tensors: tensors.update(other=tensors.pop(min(tensors)))
    ),
    "weights that are no numbers": lambda c: alter_tensors(
        c / "policy.safetensors", lambda tensors: tensors[min(tensors)].view(-1)[:1].fill_(nan)
    ),
    "a learner with names that are none": lambda c: alter_tensors(
        c / "learner.safetensors", lambda tensors: tensors.update({"optimizer/pi/exp_avg": torch.ones(1)})
    ),
    "a learner with a part that is none": lambda c: alter_tensors(
        c / "learner.safetensors", lambda tensors: tensors.update(step=torch.ones(1))
    ),
}


@pytest.mark.parametrize("alteration", UNREADABLE)
def test_a_checkpoint_that_contradicts_itself_is_passed_over(
    killed_run: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture, alteration: str
) -> None:
    UNREADABLE[alteration](checkpoint)
    seal(checkpoint)
    assert find_resumption(TrainConfig(resume=killed_run)).checkpoint == checkpoints_of(killed_run)[-2]
    (warning,) = caplog.messages
    assert "\n" not in warning


UNFIT: dict[str, Callable[[Path], None]] = {
    "a missing state": lambda c: alter_tensors(
        c / "learner.safetensors", lambda tensors: tensors.pop(first_optimizer_tensor(tensors))
    ),
    "no states": lambda c: alter_tensors(c / "learner.safetensors", lambda tensors: tensors.clear()),
    "a state of another shape": lambda c: alter_tensors(
        c / "learner.safetensors",
        lambda tensors: tensors.update({first_optimizer_tensor(tensors): torch.ones(2, 3)}),
    ),
    "one parameter more": lambda c: alter_tensors(
        c / "learner.safetensors", lambda tensors: tensors.update({"optimizer/99/step": torch.ones(())})
    ),
    "a learning rate that is no number": lambda c: alter_group(c, lr=nan),
    "a negative learning rate": lambda c: alter_group(c, lr=-1.0),
    "another optimizer": lambda c: alter_group(c, amsgrad=True),
    "a setting that is no number": lambda c: alter_group(c, eps=nan),
    "another setting": lambda c: alter_group(c, momentum=0.9),
}


def alter_group(checkpoint: Path, **values: object) -> None:
    (group,) = json.loads((checkpoint / "learner.json").read_text())["param_groups"]
    alter_json(checkpoint / "learner.json", param_groups=[{**group, **values}])


@pytest.mark.parametrize("alteration", UNFIT)
def test_an_optimizer_that_is_not_the_learner_s_is_refused(checkpoint: Path, alteration: str) -> None:
    """torch would take each of these without a word, or fail at the next update."""
    optimizer = torch.optim.Adam(load_policy(checkpoint).parameters(), lr=1e-3)
    require_fitting_optimizer(read_learner_state(checkpoint), optimizer, checkpoint)
    UNFIT[alteration](checkpoint)
    with pytest.raises(CheckpointError, match=r"is damaged: learner\.") as refusal:
        require_fitting_optimizer(read_learner_state(checkpoint), optimizer, checkpoint)
    assert "\n" not in str(refusal.value)


def test_a_checkpoint_or_run_cannot_bring_its_own_code(
    killed_run: Path,
    checkpoint: Path,
    marker: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Even where it lies in the working folder, which is searched for plugins."""
    monkeypatch.chdir(killed_run.parent)
    (checkpoint / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
    plugin = f"run.checkpoints.{checkpoint.name}.evil"
    seal(checkpoint, plugins=[plugin])
    assert f"plugin '{plugin}' lies in" in refused(capsys, "evaluate", checkpoint)
    assert f"plugin '{plugin}' lies in" in refused(capsys, "compare", checkpoint)
    config = json.loads((killed_run / "config.json").read_text())
    alter_json(killed_run / "config.json", command={**config["command"], "plugin": [plugin]})
    assert f"plugin '{plugin}' lies in" in refused(capsys, "train", "--resume", killed_run)
    assert f"plugin '{plugin}' lies in" in refused(capsys, "replay", killed_run, "--episode", 1)
    assert f"plugin '{plugin}' lies in" in refused(capsys, "export", killed_run)


def test_a_checkpoint_of_another_task_is_refused(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "evaluate", checkpoint, "--task", "cifar10")
    assert "was trained on task digits, not on --task cifar10" in said


@pytest.mark.usefixtures("session_ray")
def test_what_only_the_learner_can_refuse_is_refused_before_anything_is_written(
    killed_run: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = killed_run.parent / "new"
    begin = ["train", "--from-checkpoint", checkpoint, "--runners", 0, "--max-epochs", 12, "--out", new]
    assert "are another network's" in refused(capsys, *begin, "--ppo.hidden", 32, 32)
    assert "observation differ from the present ones" in refused(capsys, *begin, "--host-variety")
    assert not new.exists()

    UNFIT["a missing state"](checkpoint)
    seal(checkpoint)
    before = {path: path.read_bytes() for path in killed_run.rglob("*") if path.is_file()}
    assert "learner.safetensors holds" in refused(capsys, "train", "--resume", killed_run)
    assert {path: path.read_bytes() for path in killed_run.rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("session_ray")
def test_a_damaged_checkpoint_costs_the_iterations_since_the_one_before(
    killed_run: Path, undisturbed_run: Path, checkpoint: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(checkpoint / "learner.safetensors", marker)
    assert run(["train", "--resume", str(killed_run)]) == 0
    for file in ("policy.safetensors", "learner.safetensors"):
        written = undisturbed_run / "checkpoints" / checkpoint.name / file
        assert (checkpoint / file).read_bytes() == written.read_bytes()


# --- episodes in progress -----------------------------------------------------------------------------------------


@pytest.fixture
def in_progress(tmp_path: Path) -> tuple[HostCheckpoints, EpisodeSoFar, Path]:
    """An episode that an actor has written down, and its file."""
    episode = EpisodeSoFar(Ticket(1, 2, 3, 4), start="start", steps=[(0, "step")], state=b"state")
    checkpoints = HostCheckpoints(tmp_path, b"the run's own key", every=1)
    checkpoints.write(episode)
    (file,) = tmp_path.glob("*.episode")
    assert checkpoints.read(episode.ticket) == episode
    return checkpoints, episode, file


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_episode_in_progress_is_none(
    in_progress: tuple[HostCheckpoints, EpisodeSoFar, Path], marker: Path, damage: Callable[[Path, Path], None]
) -> None:
    checkpoints, episode, file = in_progress
    damage(file, marker)
    assert checkpoints.read(episode.ticket) is None


@pytest.mark.parametrize("key", [b"", b"a key of another run", None])
def test_nothing_that_another_has_signed_is_read(
    in_progress: tuple[HostCheckpoints, EpisodeSoFar, Path], marker: Path, key: bytes | None
) -> None:
    checkpoints, episode, file = in_progress
    content = pickle.dumps(Bomb(marker))
    signature = file.read_bytes()[:32] if key is None else hmac.digest(key, content, "sha256")
    file.write_bytes(signature + content)
    assert checkpoints.read(episode.ticket) is None


def test_the_episode_of_another_ticket_is_none(in_progress: tuple[HostCheckpoints, EpisodeSoFar, Path]) -> None:
    checkpoints, episode, file = in_progress
    other = EpisodeSoFar(Ticket(1, 9, 9, 9), start=None)
    checkpoints.write(other)
    (written,) = set(file.parent.glob("*.episode")) - {file}
    written.replace(file)
    assert checkpoints.read(episode.ticket) is None


def test_every_refusal_is_one_that_a_program_can_catch() -> None:
    assert issubclass(CheckpointError, EsperError)
