"""Integers stay integers, and standardisation is a setting: in batches, in lockstep, in an export and in hosts."""

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from esper_ray.cli.main import run
from esper_ray.data import data_source
from esper_ray.episode import MorphogenesisEnv, run_ppo_episode
from esper_ray.episode.host_run import HostRun
from esper_ray.errors import ConfigurationError, DatasetError, LifecycleError
from esper_ray.export import export_model
from esper_ray.lifecycle import LifecycleSettings
from esper_ray.models import SlottedHost, host
from esper_ray.orchestration.run.plan import require_playable
from esper_ray.policies import SchedulePolicy
from esper_ray.tasks import (
    DataSettings,
    DecisionSettings,
    HostSettings,
    TaskSpec,
    get_task_spec,
    load_task_data,
    load_test_data,
    prepare_data,
    register_task,
)
from esper_ray.training.lockstep import run_batched
from esper_ray.training.work import run_one

TOKENS, LENGTH = 30, 6
QUICK: dict[str, Any] = {
    "lifecycle": LifecycleSettings(training_dwell=1, blending_steps=2, min_blending_epochs=1, shadowing_dwell=1),
    "decisions": DecisionSettings(
        min_germination_epoch=2, min_plateau=0, require_stabilised=False, min_cull_age=2, blueprints=("mlp", "norm")
    ),
}


@pytest.fixture(autouse=True)
def own_cache(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPER_RAY_CACHE", str(own_folder / "cache"))


def words(dtype: Any = np.int64, samples: int = 240, shape: tuple[int, ...] = (LENGTH,)) -> Any:
    """Sequences of token ids; the class says whether they are high ones on the whole."""
    ids = np.random.default_rng(0).integers(0, TOKENS, (samples, *shape)).astype(dtype)
    return ids, (ids.reshape(samples, -1).mean(axis=1) >= TOKENS // 2).astype(np.int64)


def task_of(inputs: Any, labels: Any, **settings: Any) -> TaskSpec:
    third = len(inputs) // 3
    splits = {
        name: (inputs[place * third : (place + 1) * third], labels[place * third : (place + 1) * third])
        for place, name in enumerate(("train", "validation", "test"))
    }
    data_source("typed", "")(lambda files: splits)
    settings = {"host": HostSettings(kind="cnn"), "data": DataSettings(source="typed", batch_size=16), **settings}
    return TaskSpec(
        name="typed", summary="", input_shape=inputs.shape[1:], classes=2, max_epochs=12, **QUICK, **settings
    )


def data_settings(**settings: Any) -> DataSettings:
    return DataSettings(source="typed", batch_size=16, **settings)


def seen(task: TaskSpec) -> Tensor:
    """What a host gets of the validation split."""
    return torch.cat([inputs for inputs, _ in load_task_data(task).validation])


class Embedded(SlottedHost):
    """Token ids in, the mean of what an embedding and a seed make of them out."""

    topology = "transformer"

    def __init__(self, input_shape: tuple[int, ...], classes: int, *, width: int = 16) -> None:
        super().__init__()
        self.injection_points = {"middle": width}
        self.embed, self.head = nn.Embedding(TOKENS, width), nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.at("middle", self.embed(tokens)).mean(dim=1))
        return logits


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_integers_reach_the_host_as_they_are(dtype: Any) -> None:
    inputs, labels = words(dtype)
    found = seen(task_of(inputs, labels))
    assert found.dtype == torch.int64
    assert torch.equal(found, torch.from_numpy(inputs[80:160].astype(np.int64)))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, np.bool_])
def test_bytes_and_numbers_are_standardised_with_the_training_split(dtype: Any) -> None:
    inputs = np.random.default_rng(0).integers(0, 2 if dtype is np.bool_ else 256, (240, 3, 4, 4)).astype(dtype)
    task = task_of(inputs, np.arange(240) % 2)
    stored = inputs if dtype is np.uint8 else inputs.astype(np.float32)
    mean, std = (getattr(stored[:80], name)(axis=(0, 2, 3)).tolist() for name in ("mean", "std"))
    expected = torch.from_numpy(stored[80:160]).float()
    expected = (expected + -torch.tensor(mean).view(3, 1, 1)) * (1.0 / torch.tensor(std).view(3, 1, 1))
    assert torch.equal(seen(task), expected)


@pytest.mark.parametrize(("dtype", "kept"), [(np.uint8, torch.int64), (np.float32, torch.float32)])
def test_standardisation_can_be_turned_off(dtype: Any, kept: torch.dtype) -> None:
    inputs = np.random.default_rng(0).integers(0, 256, (240, 3, 4, 4)).astype(dtype)
    task = task_of(inputs, np.arange(240) % 2, data=data_settings(standardise=False))
    assert torch.equal(seen(task), torch.from_numpy(inputs[80:160]).to(kept))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
@pytest.mark.parametrize("mean", [(10.0, 20.0, 30.0), (10.0,)])
def test_pretrained_weights_get_their_own_mean_and_deviation(dtype: Any, mean: tuple[float, ...]) -> None:
    inputs = np.random.default_rng(0).integers(0, 256, (240, 3, 4, 4)).astype(dtype)
    task = task_of(inputs, np.arange(240) % 2, data=data_settings(mean=mean, deviation=(2.0,)))
    expected = (torch.from_numpy(inputs[80:160]).float() - torch.tensor(mean).view(-1, 1, 1)) / 2
    assert torch.equal(seen(task), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mean": (1.0,)}, "data.mean and data.deviation go together"),
        ({"mean": (1.0,), "deviation": (0.0,)}, "data.deviation must be above 0"),
        ({"mean": (1.0,), "deviation": (1.0,), "standardise": False}, "data.standardise=false turns off"),
        ({"mean": (1.0, 2.0), "deviation": (1.0,)}, "data.mean has 2 values, but samples of typed have 3 channels"),
    ],
)
def test_settings_of_standardisation_that_contradict_are_one_line(settings: dict[str, Any], message: str) -> None:
    register_task(task_of(np.zeros((240, 3, 4, 4), np.uint8), np.arange(240) % 2))
    with pytest.raises(ConfigurationError, match=message) as caught:
        prepare_data(get_task_spec("typed", {f"data.{name}": value for name, value in settings.items()}))
    assert "\n" not in str(caught.value)


def test_a_text_has_no_mean() -> None:
    with pytest.raises(ConfigurationError, match="a text has tokens, which stay as they are"):
        get_task_spec("pydoc", {"data.mean": [1.0], "data.deviation": [1.0]})


def test_splits_of_different_types_are_refused() -> None:
    inputs, labels = words()
    splits = {"train": (inputs, labels), "validation": (inputs.astype(np.float32), labels), "test": (inputs, labels)}
    task = task_of(inputs, labels)
    data_source("mixed", "")(lambda files: splits)
    with pytest.raises(DatasetError, match=r"inputs of different types.*'validation': 'float32'"):
        prepare_data(task.model_copy(update={"data": DataSettings(source="mixed")}))


def test_whole_numbers_that_no_integer_of_torch_holds_are_refused() -> None:
    inputs, labels = words(np.uint64)
    inputs[100, 2] = 2**63
    with pytest.raises(DatasetError, match=r"expected whole numbers below 2\*\*63"):
        prepare_data(task_of(inputs, labels))


def test_the_settings_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tasks", "digits"]) == 0
    shown = capsys.readouterr().out
    assert all(f"data.{name}" in shown for name in ("standardise", "mean", "deviation"))


def embedded_task(**settings: Any) -> TaskSpec:
    host("embedded")(Embedded)
    return task_of(*words(samples=900), host=HostSettings(kind="embedded"), **settings)


def test_a_host_that_embeds_token_ids_is_found_sound_and_learns_with_a_seed() -> None:
    task = embedded_task(data=data_settings(label_noise=0.05, train_share=0.9))
    require_playable(task, None)
    policy = SchedulePolicy(MorphogenesisEnv(task).action_table, "mlp", germinate_at=2, fossilize_at=8)
    record = run_ppo_episode(policy, task, episode_seed=1).record
    assert record.kept_blueprint == "mlp"
    assert record.epochs[-1].train_loss < record.epochs[0].train_loss - 0.05


def test_hosts_that_embed_are_trained_in_lockstep_as_one_by_one() -> None:
    task = embedded_task()

    def trained(together: bool) -> list[float]:
        runs = [HostRun(task, load_task_data(task).of_another_host(), "cpu", seed) for seed in (1, 2)]
        for _ in range(2):
            steps = [each.epoch_steps() for each in runs]
            run_batched(steps) if together else [run_one(each) for each in steps]
        return [each.outcome.val_loss for each in runs if each.outcome is not None]

    assert trained(together=True) == trained(together=False)


@pytest.mark.parametrize("kind", ["embedded", "cnn as bytes", "cnn with a mean"])
def test_an_exported_host_takes_what_the_data_set_stores(kind: str, tmp_path: Path) -> None:
    if kind == "embedded":
        task = embedded_task()
    else:

        @host("casting")
        class Casting(SlottedHost):
            def __init__(self, input_shape: tuple[int, ...], classes: int) -> None:
                super().__init__()
                self.injection_points = {"middle": 4}
                self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, classes)

            def forward(self, images: Tensor) -> Tensor:
                logits: Tensor = self.head(self.at("middle", self.conv(images.float() / 255)).mean(dim=(2, 3)))
                return logits

        ways = {"cnn as bytes": {"standardise": False}, "cnn with a mean": {"mean": (7.0,), "deviation": (3.0,)}}
        images = np.random.default_rng(0).integers(0, 256, (240, 3, 4, 4)).astype(np.uint8)
        settings = HostSettings(kind="casting")
        task = task_of(images, np.arange(240) % 2, host=settings, data=data_settings(**ways[kind]))
    trained = HostRun(task, load_task_data(task), "cpu", 1)
    trained.train_epoch()
    prepared = prepare_data(task)
    topology = export_model(trained.model, task, prepared, None, tmp_path / "export", {})
    network = runpy.run_path(str(tmp_path / "export" / "model.py"))["load"](tmp_path / "export")
    stored = prepared.split("test")[0]
    assert topology["input"]["dtype"] == str(stored.dtype).removeprefix("torch.")
    with torch.inference_mode():
        expected = torch.cat([trained.model(inputs) for inputs, _ in load_test_data(task)])
        assert torch.equal(network(stored), expected)


def test_images_of_categories_can_be_shifted_and_mirrored() -> None:
    inputs, labels = words(shape=(1, 8, 8))
    task = task_of(inputs, labels, data=data_settings(augmentation="crop_and_flip"))
    (batch, _), *_ = load_task_data(task).train
    assert batch.dtype == torch.int64
    assert set(batch.flatten().tolist()) <= {0, *inputs.flatten().tolist()}
    assert not any(np.array_equal(batch[0].numpy(), image) for image in inputs)


def test_integers_must_be_embedded_before_they_reach_a_slot() -> None:
    class Early(Embedded):
        def forward(self, tokens: Tensor) -> Tensor:
            logits: Tensor = self.head(self.embed(self.at("middle", tokens)).mean(dim=1))
            return logits

    host("early")(Early)
    task = task_of(*words(), host=HostSettings(kind="early"))
    with pytest.raises(LifecycleError, match=r"features of type torch.int64 reach the slot.*behind an embedding"):
        require_playable(task, None)
