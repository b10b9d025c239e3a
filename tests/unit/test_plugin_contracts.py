"""Each hook of a plugin is held to what it promises, in one line; one wrong task does not hide the others."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from plugin_source import write_plugin
from torch import nn

from esper_ray.cli.main import run
from esper_ray.data import data_source, get_source, prepare
from esper_ray.errors import ConfigurationError, DatasetError, EsperError
from esper_ray.models import CNNHost, SlottedHost, blueprint, host, list_blueprints
from esper_ray.plugins import load_plugins
from esper_ray.tasks import (
    DataSettings,
    HostSettings,
    TaskSpec,
    create_model,
    get_task_spec,
    register_task,
    require_sound,
    task_names,
)


@pytest.fixture(autouse=True)
def own_cache(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPER_RAY_CACHE", str(own_folder / "cache"))


def spec(name: str = "mine", **settings: Any) -> TaskSpec:
    values = {"data": DataSettings(source="digits"), "input_shape": (1, 8, 8), "classes": 10, **settings}
    return TaskSpec(name=name, summary="", **values)


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error)
    return str(error)


# --- data sources ---------------------------------------------------------------------------------------------------


def read(files: list[Path]) -> Any:
    numbers = np.load(files[0])
    return dict.fromkeys(("train", "validation", "test"), (numbers, np.arange(len(numbers)) % 2))


@pytest.mark.parametrize(
    ("find", "message"),
    [
        (lambda folder: [], "no files of found were found in {folder}; see to its find"),
        (lambda folder: folder.glob("*.zip"), "no files of found were found in {folder}; see to its find"),
        (lambda folder: None, "the find of found must return a list of files, got None"),
        (lambda folder: "numbers.npy", "the find of found must return a list of files, got 'numbers.npy'"),
        (lambda folder: [folder], "the find of found must return files, but {folder} is none"),
        (lambda folder: [folder / "gone.npy"], "the find of found must return files, but {folder}/gone.npy is none"),
        (lambda folder: folder.nothing, "found is not found: AttributeError: 'PosixPath' object has no attribute"),
    ],
)
def test_what_find_returns_is_checked_and_named(find: Any, message: str, tmp_path: Path) -> None:
    data_source("found", "", find=find)(read)
    with pytest.raises(DatasetError) as caught:
        prepare(get_source("found"), tmp_path)
    assert message.format(folder=tmp_path) in one_line(caught.value)


@pytest.mark.parametrize("find", [lambda folder: [folder / "a.npy"], lambda folder: folder.glob("*.npy"), None])
def test_what_find_may_return(find: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((4, 2)))
    data_source("found", "", find=find or (lambda folder: [str(folder / "a.npy")]))(read)
    assert len(prepare(get_source("found"), tmp_path).split("train")[1]) == 4


@pytest.mark.parametrize("find", [lambda folder: [], lambda folder: [folder / "a.npy"]])
def test_tasks_says_that_there_are_no_files_and_train_what_to_do(find: Any, capsys: pytest.CaptureFixture[str]) -> None:
    data_source("found", "some numbers", find=find)(read)
    register_task(spec(data=DataSettings(source="found")))
    assert run(["tasks", "mine"]) == 0
    assert "found, some numbers: no files on this machine" in " ".join(capsys.readouterr().out.split())
    assert run(["train", "--task", "mine"]) == 2
    assert "pass its folder with --data-dir, or see to its find" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "a/b"}, "data source 'a/b': expected a name of letters"),
        ({"name": read}, "expected a name of letters"),
        ({"name": "a", "kind": "txt"}, "data source 'a': unknown kind 'txt': did you mean 'text'"),
    ],
)
def test_a_data_source_needs_a_name_and_a_known_kind(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        data_source(description="", **arguments)
    assert message in one_line(caught.value)


@pytest.mark.parametrize("documents", [["some", "words"], None, {"train": ["a"]}, {name: "text" for name in "abc"}])
def test_a_reader_of_texts_returns_documents_by_split(documents: Any, tmp_path: Path) -> None:
    data_source("spoken", "", kind="text")(lambda files: documents)
    with pytest.raises(DatasetError, match=r"must return a dict of splits|has no split"):
        prepare(get_source("spoken"))


# --- hosts and blueprints -------------------------------------------------------------------------------------------


class Tried(SlottedHost):
    """A host that can be made wrong in one way."""

    points: ClassVar[Any] = {"end": 4}

    def __init__(self, input_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.injection_points = self.points
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.at("end", self.conv(images)).mean(dim=(2, 3)))
        return logits


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (["end"], "host Tried has wrong injection points: expected a dict of slot id → feature width, got ['end']"),
        ({"end": "4"}, "host Tried has wrong injection points"),
        ({"end": 0}, "host Tried has wrong injection points"),
        ({"layer.1": 4}, "host Tried cannot take a slot at 'layer.1': register_slot raises KeyError"),
        ({"other": 4}, "host Tried does not run the module that it was given for 'other'"),
    ],
)
def test_injection_points_are_names_and_widths(points: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tried, "points", points)
    host("tried")(Tried)
    with pytest.raises(EsperError) as caught:
        require_sound(spec(host=HostSettings(kind="tried")))
    assert message in one_line(caught.value)


def test_a_width_may_be_an_integer_of_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tried, "points", {"end": np.int64(4)})
    host("tried")(Tried)
    require_sound(spec(host=HostSettings(kind="tried")))


def test_decorators_without_a_name_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="a host needs a name: write @host"):
        host(CNNHost)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="a blueprint needs names: write @blueprint"):
        blueprint(nn.Linear, topology="cnn")  # type: ignore[arg-type]


def test_an_obstacle_that_raises_is_named() -> None:
    def obstacle(device: torch.device, width: int) -> str | None:
        raise KeyError("no such device")

    blueprint("hindered", topology="cnn", obstacle=obstacle)(nn.Linear)
    with pytest.raises(ConfigurationError, match="the obstacle of blueprint 'hindered' raises KeyError"):
        list_blueprints("cnn", 4)


# --- tasks ----------------------------------------------------------------------------------------------------------

THREE_TASKS = """
from esper_ray.tasks import DataSettings, HostSettings, TaskSpec, register_task

def spec(name, **settings):
    values = {"data": DataSettings(source="digits"), "input_shape": (1, 8, 8), "classes": 10, **settings}
    return TaskSpec(name=name, summary="", **values)

@register_task
def first():
    return spec("first")

@register_task
def wrong():
    WRONG

@register_task
def third():
    return spec("third")

def made_by_hand():
    return first().model_copy(update={"name": "fourth"})

register_task(made_by_hand())
"""
WRONG = {
    "return spec('wrong', data=DataSettings(source='digits', batch_size=0))": "setting batch_size=0 of DataSettings",
    "return spec('wrong', classes=1)": "task wrong needs input_shape, and classes of at least 2",
    "return spec('wrong', host=HostSettings(kind='cnm'))": "unknown host 'cnm': did you mean 'cnn'?",
    "return spec('wrong', epochs=3)": "setting epochs=3 of TaskSpec: Extra inputs",
    "return TaskSpec(name='wrong')": "setting summary of TaskSpec is missing",
    "return spec('digits', classes=3)": "task 'digits' is already registered",
    "return None": "its function must return a TaskSpec, got None",
    "return {}['classes']": "its function raises KeyError: 'classes'",
}


@pytest.mark.parametrize("line", WRONG)
def test_one_wrong_task_is_reported_as_what_it_is_and_the_others_work(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_tasks.py").write_text(THREE_TASKS.replace("WRONG", line))
    load_plugins(["own_tasks"])
    assert {"first", "wrong", "third", "fourth"} <= set(task_names())
    assert [create_model(get_task_spec(name)).slot_id for name in ("first", "third")] == ["block2_post"] * 2
    with pytest.raises(ConfigurationError, match="task 'wrong' is wrong: ") as caught:
        get_task_spec("wrong")
    assert WRONG[line] in one_line(caught.value)
    assert run(["tasks", "--plugin", "own_tasks"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert WRONG[line] in printed
    assert all(f"{name} ; 25 epochs" in printed for name in ("first", "third", "fourth"))
    assert run(["train", "--plugin", "own_tasks", "--task", "wrong"]) == 2
    assert WRONG[line] in capsys.readouterr().err


def test_whoever_asks_for_the_name_that_a_wrong_task_would_have_is_told_why() -> None:
    @register_task
    def function() -> TaskSpec:
        return spec("named_otherwise", classes=1)

    with pytest.raises(ConfigurationError, match=r"task 'function' is wrong: .* classes of at least 2"):
        get_task_spec("named_otherwise")


def test_decorators_return_what_they_were_given() -> None:
    def mine() -> TaskSpec:
        return spec()

    task = spec("other")
    assert register_task(mine) is mine
    assert register_task(task) is task
    assert host("tried")(Tried) is Tried
    assert blueprint("plain", topology="own")(nn.Linear) is nn.Linear
    assert data_source("found", "")(read) is read


def test_a_task_may_be_defined_anew_as_a_host_may() -> None:
    """As when a cell of a notebook is run again, mended."""
    for classes in (1, 10, 12):

        @register_task
        def mine(classes: int = classes) -> TaskSpec:
            return spec(classes=classes)

    assert get_task_spec("mine").classes == 12

    def other() -> TaskSpec:
        return spec(classes=13)

    register_task(other)
    with pytest.raises(ConfigurationError, match="task 'mine' is already registered"):
        get_task_spec("other")
    with pytest.raises(ConfigurationError, match="task 'mine' is registered, and other returns another one of that"):
        get_task_spec("mine")

    def mended() -> TaskSpec:
        return spec("mended")

    mended.__name__ = "other"
    register_task(mended)
    assert get_task_spec("mine").classes == 12


@pytest.mark.parametrize("given", [None, {"name": "mine"}, "mine"])
def test_what_is_no_task_is_refused(given: Any) -> None:
    with pytest.raises(ConfigurationError, match="register_task takes a TaskSpec or a function that returns one"):
        register_task(given)


def test_a_setting_that_is_wrong_while_a_plugin_is_imported_is_no_import_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = write_plugin(tmp_path, task="max_epochs=0,")
    path = tmp_path / f"{name}.py"
    path.write_text(path.read_text().replace("max_epochs=12, ", ""))
    assert run(["tasks", "--plugin", name]) == 2
    error = capsys.readouterr().err
    assert f"plugin '{name}': setting max_epochs=0 of TaskSpec: Input should be greater than or equal to 1" in error
    assert "does not import" not in error
    assert "@register_task" in error
