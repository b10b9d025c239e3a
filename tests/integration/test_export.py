"""Kept hosts, and their export: plain files that torch alone loads, to the last bit."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fast_tasks import FASHION_MNIST, make_fast_task, make_fast_text_task
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from esper_ray.episode.host_run import HostRun
from esper_ray.episode.record import EpisodeRecord
from esper_ray.errors import ConfigurationError, RunFolderError
from esper_ray.export import export_model
from esper_ray.models import MorphogeneticModel, list_blueprints
from esper_ray.orchestration.fleet.tickets import FinishedEpisode, Ticket
from esper_ray.orchestration.run.kept_hosts import KeptHosts, kept_episodes, load_kept_host
from esper_ray.tasks import TaskSpec, create_model, get_task_spec, load_task_data, load_test_data, prepare_data
from esper_ray.training import _train_one_epoch, build_optimizer, evaluate

ALONE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("esper_ray", "ray", "safetensors", "numpy", "sklearn"):
            raise ModuleNotFoundError(f"{name} is not to be had here", name=name)

sys.meta_path.insert(0, Refuse())
sys.path.insert(0, sys.argv[1])
import torch
from model import load

torch.set_num_threads(1)
split = torch.load(sys.argv[2])
with torch.inference_mode():
    logits = [load()(part).flatten(0, -2) for part in split["inputs"]]
correct = sum(int((out.argmax(1) == want.flatten()).sum()) for out, want in zip(logits, split["targets"]))
print(100.0 * correct / sum(want.numel() for want in split["targets"]))
torch.save(torch.cat(logits), sys.argv[3])
"""


def grown(task: TaskSpec, blueprint_id: str | None) -> MorphogeneticModel:
    """A host that has trained, with a fossil that is no longer the identity."""
    run = HostRun(task, load_task_data(task), "cpu", 5)
    for _ in range(2):
        run.train_epoch()
    if blueprint_id is not None:
        run.model.seed_slot.place_fossil(blueprint_id, "s")
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in run.model.get_seed_parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return run.model.eval()


def raw_batches(task: TaskSpec) -> list[tuple[Tensor, Tensor]]:
    if task.task_type == "lm":
        return list(load_test_data(task))
    inputs, targets = prepare_data(task).split("test")
    return list(zip(inputs.split(1000), targets.split(1000), strict=True))


CASES = [
    *[("cnn", name) for name in (None, *(b.blueprint_id for b in list_blueprints("cnn", 2)))],
    *[("transformer", name) for name in (None, *(b.blueprint_id for b in list_blueprints("transformer", 16)))],
]
PROCESS_CASES = [("cnn", "conv_heavy"), ("transformer", "attention")]


def make_task(kind: str) -> TaskSpec:
    return make_fast_task() if kind == "cnn" else make_fast_text_task(host__dropout=0.1)


@pytest.mark.parametrize(("kind", "blueprint_id"), PROCESS_CASES)
def test_an_export_runs_without_this_package_and_gets_the_same_accuracy_to_the_last_bit(
    kind: str, blueprint_id: str, tmp_path: Path
) -> None:
    task = make_task(kind)
    model = grown(task, blueprint_id)
    folder = tmp_path / "export"
    topology = export_model(model, task, prepare_data(task), None, folder, {"episode": 1})
    os.umask(umask := os.umask(0))
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o666 & ~umask}
    inputs, targets = zip(*raw_batches(task), strict=True)
    torch.save({"inputs": inputs, "targets": targets}, tmp_path / "split.pt")

    arguments = [
        sys.executable,
        "-I",
        "-c",
        ALONE,
        str(folder),
        str(tmp_path / "split.pt"),
        str(tmp_path / "logits.pt"),
    ]
    answer = subprocess.run(arguments, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    measured = evaluate(model, load_test_data(task), nn.CrossEntropyLoss(), "cpu", task.task_type)
    assert float(answer.stdout) == measured.accuracy == topology["test"]["accuracy"]
    assert topology["test"]["loss"] == pytest.approx(measured.loss, rel=1e-6)
    with torch.inference_mode():
        ours = torch.cat([model(batch).flatten(0, -2) for batch, _ in load_test_data(task)])
    assert torch.equal(torch.load(tmp_path / "logits.pt"), ours)


@pytest.mark.parametrize(("kind", "blueprint_id"), CASES)
def test_every_host_with_every_seed_exports(kind: str, blueprint_id: str | None, tmp_path: Path) -> None:
    task = make_task(kind)
    model = grown(task, blueprint_id)
    topology = export_model(model, task, prepare_data(task), None, tmp_path / "export", {"episode": 1})
    assert sorted(path.name for path in (tmp_path / "export").iterdir()) == [
        "model.py",
        "topology.json",
        "weights.safetensors",
    ]
    assert json.loads((tmp_path / "export" / "topology.json").read_text()) == json.loads(json.dumps(topology))
    assert topology["slot"] == {"injection_point": model.slot_id, "width": model.seed_slot.width}
    grew = {"blueprint": blueprint_id, "parameters": model.active_seed_params}
    assert topology["seed"] == (grew if blueprint_id else None)
    assert topology["host"]["parameters"] == sum(p.numel() for p in model.get_host_parameters())
    stored = load_file(tmp_path / "export" / "weights.safetensors")
    assert {name: list(tensor.shape) for name, tensor in stored.items()} == topology["weights"]
    trained = sum(p.numel() for p in model.parameters())
    buffers = ("input_", "running_")
    assert sum(t.numel() for n, t in stored.items() if not any(b in n for b in buffers)) == trained


@pytest.mark.parametrize("name", ["digits", "fashion_mnist"])
def test_hosts_that_train_in_ways_of_their_own_export(name: str, tmp_path: Path) -> None:
    """`digits` has 8 channels, `fashion_mnist` 4 and large batches; what is exported has torch's operations."""
    if name == "fashion_mnist" and not FASHION_MNIST.is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    task = get_task_spec(name)
    model, train, criterion = create_model(task), load_task_data(task).train, nn.CrossEntropyLoss()
    _train_one_epoch(
        model, train, criterion, build_optimizer(model.parameters(), task.host_optimizer), None, "cpu", task.task_type
    )
    topology = export_model(model, task, prepare_data(task), None, tmp_path / "export", {"episode": 1})
    measured = evaluate(model, load_test_data(task), criterion, "cpu", task.task_type)
    assert topology["test"]["accuracy"] == measured.accuracy


def test_an_exported_network_can_be_trained_on(tmp_path: Path) -> None:
    import runpy

    task = make_fast_task()
    export_model(grown(task, "conv_light"), task, prepare_data(task), None, tmp_path / "export", {})
    network = runpy.run_path(str(tmp_path / "export" / "model.py"))["load"](tmp_path / "export")
    inputs, targets = raw_batches(task)[0]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_a_host_that_cannot_be_traced_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    task = make_fast_task()
    model = create_model(task).eval()

    class Moody(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return features if features.sum() > 0 else -features

    model.host.slots[model.slot_id] = Moody()  # type: ignore[union-attr, operator]
    with pytest.raises(ConfigurationError, match=r"torch.export cannot trace host CNNHost.*plain torch"):
        export_model(model, task, prepare_data(task), None, tmp_path / "exports" / "export", {})
    assert list(tmp_path.rglob("*.*")) == []


def test_a_host_that_computes_in_a_block_is_refused(tmp_path: Path) -> None:
    task = make_fast_task()
    model = create_model(task).eval()

    class Casting(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return features + 0 * features

    model.host.slots[model.slot_id] = Casting()  # type: ignore[union-attr, operator]
    with pytest.raises(ConfigurationError, match="computes inside a block such as autocast"):
        export_model(model, task, prepare_data(task), None, tmp_path / "export", {})


# --- kept hosts ---------------------------------------------------------------------------------------------------


def finished(number: int, accuracy: float) -> FinishedEpisode:
    record = EpisodeRecord("t", number, accuracy, 1.0, accuracy, 1.0, None, "DORMANT", 10, 0, 1.0, 0.1)
    return FinishedEpisode(Ticket(1, number, 0, 0), record, {"w": torch.full((2,), float(number))})


def test_the_best_hosts_are_kept_whatever_the_order_they_come_in(tmp_path: Path) -> None:
    accuracies = {1: 50.0, 2: 70.0, 3: 60.0, 4: 70.0, 5: 70.0, 6: 70.0}
    for i, order in enumerate(([1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1], [3, 6, 1, 4, 2, 5])):
        folder = tmp_path / str(i)
        kept = KeptHosts(folder, 3)
        for number in order:
            kept.offer(number, finished(number, accuracies[number]))
        assert kept_episodes(folder) == [2, 4, 5]  # of equals the earlier ones
        assert kept.threshold == 70.0
    assert load_kept_host(folder, 4)["w"].tolist() == [4.0, 4.0]


def test_an_episode_must_beat_the_worst_kept_one(tmp_path: Path) -> None:
    kept = KeptHosts(tmp_path / "hosts", 1)
    assert kept.threshold == float("-inf")
    kept.offer(1, finished(1, 50.0))
    assert kept.threshold == 50.0
    kept.offer(2, finished(2, 50.0))
    assert kept_episodes(tmp_path / "hosts") == [1]
    nothing = KeptHosts(tmp_path / "none", 0)
    assert nothing.threshold == float("inf")
    nothing.offer(1, finished(1, 50.0))
    assert not (tmp_path / "none").exists()


def test_a_damaged_host_is_refused(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(100)}, tmp_path / "episode_000001.safetensors")
    path = tmp_path / "episode_000001.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(RunFolderError, match="is damaged"):
        load_kept_host(tmp_path, 1)


@pytest.mark.parametrize("kind", ["cnn", "transformer"])
def test_kept_weights_leave_out_a_live_seed_and_bring_back_a_fossil(kind: str) -> None:
    task = make_task(kind)
    blueprint_id = "norm"
    model = grown(task, blueprint_id)
    again = create_model(task)
    again.load_kept_weights(model.kept_weights(), blueprint_id)
    inputs, _ = next(iter(load_test_data(task)))
    with torch.inference_mode():
        assert torch.equal(again.eval()(inputs), model(inputs))
    live = create_model(task)
    live.germinate_seed(blueprint_id, "s")
    assert live.kept_weights().keys() == create_model(task).kept_weights().keys()
    with pytest.raises(ConfigurationError, match="do not fit host"):
        create_model(task).load_kept_weights(model.kept_weights(), None)
