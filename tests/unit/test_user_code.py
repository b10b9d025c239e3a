"""What is shared between episodes and runs is found again only by what has the same code, files and data."""

import importlib
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from plugin_source import write_plugin

from esper_ray.data import prepare
from esper_ray.data.cache import cache_folder
from esper_ray.data.source import get_source
from esper_ray.episode import MorphogenesisEnv
from esper_ray.episode.host_cache import HostCache, say_not_shared
from esper_ray.episode.provenance import numeric_provenance, what_is_unknown
from esper_ray.episode.rollout import play_episode
from esper_ray.models import CNNHost, host
from esper_ray.numerics import numeric_settings
from esper_ray.orchestration.run import plan
from esper_ray.plugins import load_plugins
from esper_ray.policies import WaitPolicy
from esper_ray.tasks import TaskSpec, draw_host, get_task_spec, prepare_data

BASE = "import torch\nfrom torch import nn\n\nclass Base(nn.Module):\n    gain = {gain}\n"


@pytest.fixture(autouse=True)
def own_cache(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPER_RAY_CACHE", str(own_folder / "cache"))
    say_not_shared.cache_clear()


def provenance(task: TaskSpec) -> dict[str, str]:
    return numeric_provenance(task, prepare_data(task).folder, "cpu", numeric_settings())


def reloaded(*names: str) -> None:
    """Imports modules anew, as another process would; the last one is the plugin."""
    for name in names:
        del sys.modules[name]
    importlib.invalidate_caches()
    load_plugins([names[-1]])


def plugin_with(folder: Path, line: str, **changes: str) -> str:
    """Writes a plugin in which `line` stands above everything else."""
    name = write_plugin(folder, **changes)
    path = folder / f"{name}.py"
    path.write_text(path.read_text().replace("import numpy as np\n", f"import numpy as np\n{line}\n", 1))
    return name


def weights_option(folder: Path) -> str:
    """A plugin whose host begins with the weights that an option names."""
    name = write_plugin(folder, host="if weights: self.enter.weight.data.copy_(torch.load(weights))")
    path = folder / f"{name}.py"
    path.write_text(path.read_text().replace("width: int = 8", "width: int = 8, weights: str = ''"))
    load_plugins([name])
    return name


def test_other_weights_under_the_same_name_have_another_twin(tmp_path: Path) -> None:
    name, weights = weights_option(tmp_path), tmp_path / "weights.pt"
    task = get_task_spec(name, {"reward.mode": "paired", "host.weights": str(weights)})
    twins = []
    for scale in (0.0, 1.0, 0.0):
        torch.save(scale * torch.ones(8, 4), weights)
        env = MorphogenesisEnv(task)
        record = play_episode(env, WaitPolicy(), 1)
        assert [epoch.reward for epoch in record.epochs] == [0.0] * task.max_epochs  # its twin is as it is
        twins.append([epoch.val_loss for epoch in record.epochs])
    assert twins[0] == twins[2] != twins[1]
    assert len(list((cache_folder() / "hosts").glob("twins-*"))) == 2


def test_weights_that_change_while_something_is_computed_are_not_what_is_kept(tmp_path: Path) -> None:
    name, weights = weights_option(tmp_path), tmp_path / "weights.pt"
    task = get_task_spec(name, {"host.weights": str(weights)})
    torch.save(torch.zeros(8, 4), weights)
    cache = HostCache("twins", task, prepare_data(task).folder, torch.device("cpu"))

    def replaced_meanwhile() -> str:
        torch.save(torch.ones(8, 4), weights)
        return "of both"

    assert cache.get(1, replaced_meanwhile) == ("of both", False)
    assert cache.get(1, lambda: "new") == ("new", False)
    assert cache.get(1, lambda: "newer") == ("new", True)
    torch.save(torch.zeros(8, 4), weights)
    assert cache.get(1, lambda: "old") == ("old", False)


@pytest.mark.parametrize("key", ["variety.options", "variety.hosts"])
def test_files_that_a_host_may_be_drawn_with_count(key: str, tmp_path: Path) -> None:
    name, weights = weights_option(tmp_path), tmp_path / "weights.pt"
    torch.save(torch.zeros(8, 4), weights)
    value = {"weights": (str(weights), "")} if key.endswith("options") else ({"weights": str(weights)},)
    spec = get_task_spec(name)
    task = spec.model_copy(update={"variety": spec.variety.model_copy(update={key.partition(".")[2]: value})})
    before = provenance(task)
    torch.save(torch.ones(8, 4), weights)
    assert {name for name, value in provenance(task).items() if before[name] != value} == {"files"}


@pytest.mark.parametrize(
    ("line", "changes"),
    [
        ("from helper import Base", {"more_host": "gain = Base.gain"}),
        ("import package.helper", {}),
        ("from package import helper", {}),
        ("", {"host": "from helper import Base"}),
        ("import between", {}),
    ],
)
def test_an_edit_of_what_a_plugin_imports_is_another_key(line: str, changes: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "between.py").write_text("from package.helper import Base\n")
    helpers = [tmp_path / "helper.py", tmp_path / "package" / "helper.py"]
    for helper in helpers:
        helper.write_text(BASE.format(gain=1))
    name = plugin_with(tmp_path, line, **changes)
    load_plugins([name])
    task = get_task_spec(name)
    before, data = provenance(task), prepare(get_source(name)).folder
    assert provenance(task) == before
    for helper in helpers:
        helper.write_text(BASE.format(gain=2))
    reloaded(*[module for module in ("helper", "package.helper", "between") if module in sys.modules], name)
    assert provenance(task)["code"] != before["code"]
    assert prepare(get_source(name)).folder != data


def test_an_edit_counts_once_the_module_is_loaded_anew(tmp_path: Path) -> None:
    """Numbers of the code that runs must not be kept under the name of code that will run."""
    helper = tmp_path / "helper.py"
    helper.write_text(BASE.format(gain=1))
    name = plugin_with(tmp_path, "from helper import Base")
    load_plugins([name])
    task = get_task_spec(name)
    helper.write_text(BASE.format(gain=20))
    before = provenance(task)
    reloaded("helper", name)
    assert provenance(task)["code"] != before["code"]
    helper.write_text(BASE.format(gain=1))
    importlib.reload(sys.modules["helper"])
    assert provenance(task)["code"] == before["code"]


def test_a_file_that_a_module_names_counts(tmp_path: Path) -> None:
    (tmp_path / "means.txt").write_text("1")
    name = plugin_with(tmp_path, "MEANS = 'means.txt'")
    load_plugins([name])
    before = provenance(get_task_spec(name))
    (tmp_path / "means.txt").write_text("2")
    assert provenance(get_task_spec(name)) != before


def test_another_version_of_an_installed_package_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "site-packages"
    (installed / "installed_thing-1.0.dist-info").mkdir(parents=True)
    (installed / "installed_thing.py").write_text("import os\nos.environ.get('x')\n")
    metadata = installed / "installed_thing-1.0.dist-info" / "METADATA"
    metadata.write_text("Metadata-Version: 2.1\nName: installed-thing\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(installed)
    name = plugin_with(tmp_path, "import installed_thing")
    load_plugins([name])
    task = get_task_spec(name)
    before = provenance(task)
    assert what_is_unknown(task) is None
    metadata.write_text(metadata.read_text().replace("1.0", "1.1"))
    from esper_ray import user_code

    user_code._version.cache_clear()
    assert provenance(task)["code"] != before["code"]


def test_shipped_tasks_share_whatever_plugins_there_could_be() -> None:
    assert [what_is_unknown(get_task_spec(name)) for name in ("digits", "pydoc")] == [None, None]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("import importlib; importlib.import_module('json')", "uses import_module"),
        ("import os; HOME = os.environ.get('HOME')", "uses environ"),
        ("HERE = __file__", "uses __file__"),
        ("TWO = eval('1 + 1')", "uses eval"),
        ("FOLDER = 'of_weights'", "names the folder of_weights"),
        ("def later(name): return open(f'weights_{name}.pt')", "reads a file whose name it puts together"),
        ("def later(folder): return (folder / 'weights.pt').read_bytes()", "reads a file whose name it puts together"),
    ],
)
def test_where_it_is_not_known_what_a_module_reads_nothing_is_shared_and_a_line_says_so_once(
    line: str, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Path("of_weights").mkdir()
    name = plugin_with(tmp_path, line)
    load_plugins([name])
    task = get_task_spec(name, {"reward.mode": "paired"})
    with caplog.at_level(logging.WARNING):
        records = [play_episode(MorphogenesisEnv(task, share_beginnings=True), WaitPolicy(), 1) for _ in range(2)]
    assert [record.taken_over for record in records] == [0, 0]
    assert [epoch.reward for epoch in records[1].epochs] == [0.0] * task.max_epochs
    assert not (cache_folder() / "hosts").exists()
    (message,) = caplog.messages
    assert message.startswith(f"{name}: nothing is shared between episodes")
    assert f"module {name} {reason}" in message


@pytest.mark.parametrize("text", ["ж" * 140, "x" * 5000, "/proc/1/root/x", "~/nowhere", "", ".", "/dev/null", "a\\0b"])
def test_a_text_in_a_module_may_be_anything(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    name = plugin_with(tmp_path, f"TEXT = '{text}'")
    load_plugins([name])
    assert provenance(get_task_spec(name)) == provenance(get_task_spec(name))


def test_a_file_that_may_not_be_read_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file of another user is; the tests may run as root, who may read everything."""

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("esper_ray.user_code.file_digest", refuse)
    (tmp_path / "weights.pt").write_text("1")
    name = plugin_with(tmp_path, "WEIGHTS = 'weights.pt'")
    load_plugins([name])
    assert "weights.pt, which may not be read" in str(what_is_unknown(get_task_spec(name)))


def test_files_of_options_and_of_find_are_known(tmp_path: Path) -> None:
    name = plugin_with(tmp_path, "def later(files): return np.load(files[0]), torch.load(files)")
    load_plugins([name])
    assert what_is_unknown(get_task_spec(name)) is None


def test_a_module_may_use_what_has_a_name_like_those(tmp_path: Path) -> None:
    name = plugin_with(tmp_path, "", host="self.eval()  # no builtin; nor does __file__ in a comment count")
    load_plugins([name])
    assert what_is_unknown(get_task_spec(name)) is None


def test_a_host_of_a_notebook_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cell(CNNHost):
        pass

    monkeypatch.setattr(Cell, "__module__", "__main__")
    host("cell")(Cell)
    assert "defined in __main__" in str(what_is_unknown(get_task_spec("digits", {"host.kind": "cell"})))


def test_an_option_that_names_a_folder_is_not_shared(tmp_path: Path) -> None:
    name = weights_option(tmp_path)
    task = get_task_spec(name)
    assert what_is_unknown(task) is None
    options = {**task.host.model_dump(), "weights": str(tmp_path)}
    of_a_folder = task.model_copy(update={"host": type(task.host).model_validate(options)})
    assert f"the content of {tmp_path}, an option of host '{name}', is not known" == what_is_unknown(of_a_folder)


def test_the_driver_says_that_nothing_is_shared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The actors' own logs are not shown."""

    def stop(*_: object) -> Any:
        raise InterruptedError

    name = plugin_with(tmp_path, "HERE = __file__")
    load_plugins([name])
    monkeypatch.setattr(plan, "build_algorithm", stop)
    config = plan.TrainConfig(task=name, plugin=(name,), reward="paired")
    task, placement = get_task_spec(name, config.task_overrides()), plan.Placement(1, 1, 0.0)
    with caplog.at_level(logging.WARNING), pytest.raises(InterruptedError):
        plan._algorithm(config, task, placement, 1, "board", tmp_path).__enter__()
    assert "nothing is shared between episodes" in caplog.text


def test_a_host_that_is_defined_anew_has_its_own_injection_points() -> None:
    """As when a cell of a notebook is run again."""

    def defined(point: str) -> Callable[..., Any]:
        def again(input_shape: tuple[int, ...], classes: int, *, base_channels: int = 8) -> Any:
            built = CNNHost(input_shape, classes, base_channels=base_channels, blocks=1)
            built.injection_points = {point: base_channels}
            return built

        return again

    for point in ("first", "second"):
        host("again")(defined(point))
        task = get_task_spec("digits", {"host.kind": "again", "variety.enabled": True})
        assert draw_host(task, 1).host.slot == point
