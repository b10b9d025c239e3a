"""A user's own hosts, blueprints, data and tasks: taken up everywhere, refused with the remedy when they are wrong."""

from pathlib import Path

import pytest
from plugin_source import write_plugin

from esper_ray.cli.main import run
from esper_ray.models import CNNHost, host
from esper_ray.orchestration.run import plan
from esper_ray.plugins import load_plugins
from esper_ray.tasks import get_task_spec, task_names

pytestmark = pytest.mark.usefixtures("own_folder")


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a command that must fail before Ray starts; returns its one line."""
    monkeypatch.setattr(plan, "ray_for", lambda *_: pytest.fail("Ray was started"))
    assert run(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1, output.err
    return output.err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"more_seed": "def forward(self, features):\n    return features[:, :3]"},
            "blueprint '{name}' must keep the feature shape: expected (1, 8), got (1, 3)",
        ),
        (
            {"seed": "self.linear = nn.Linear(width + 1, width)"},
            "blueprint '{name}' fails on features of shape (1, 8): RuntimeError",
        ),
        (
            {"seed": "raise ValueError('odd width')"},
            "blueprint '{name}' cannot be built at width 8: ValueError: odd width",
        ),
        (
            {"more_seed": "def forward(self, features):\n    return features.mul_(2) + self.linear(features)"},
            "blueprint '{name}' fails on features of shape (1, 8): RuntimeError: a leaf Variable that requires grad",
        ),
        (
            {"seed": "self.linear = nn.Tanh()"},
            "blueprint '{name}' has no trainable parameter, so it could learn nothing",
        ),
        (
            {"more_seed": "def forward(self, features):\n    return self.linear(features).double()"},
            "blueprint '{name}' must keep the type of the features: expected torch.float32, got torch.float64",
        ),
        ({"host": "self.injection_points = {}"}, "host Host has no injection points; give it `injection_points`"),
        ({"more_host": "register_slot = None"}, "host Host cannot take a slot; give it `register_slot"),
        (
            {"more_host": "def forward(self, points):\n    return self.leave(torch.relu(self.enter(points)))"},
            "host Host does not run the module that it was given for 'middle'",
        ),
        (
            {"host": "self.injection_points = {'middle': 5}"},
            "host Host states width 5 for 'middle', but brings features (8,)",
        ),
        ({"host": "self.leave = nn.Linear(width, 3)"}, "host Host must return logits of shape (1, 2), got (1, 3)"),
        ({"host": "self.enter = nn.Linear(9, width)"}, "host Host fails on inputs of shape (1, 4): RuntimeError"),
        ({"host": "int('x')"}, "host '{name}' cannot be built for samples of shape (4,) and 2 classes: ValueError"),
        (
            {"data": "splits['train'][0][7, 2] = np.nan"},
            "the train split of {name} has NaN or infinite values in 1 of 30 samples, first in sample 7",
        ),
        (
            {"data": "splits['test'] = (points[45:], labels[45:] + 1)"},
            "labels of {name} run up to 2, out of range for the 2 classes of task {name}",
        ),
        ({"data": "splits['validation'] = (points[:0], labels[:0])"}, "the validation split of {name} is empty"),
        ({"data": "del splits['test']"}, "{name} has no split test"),
        ({"data": "raise OSError('the disk is on fire')"}, "{name} cannot be read: OSError: the disk is on fire"),
        ({"task": "host_optimizer=OptimizerSettings(kind='adamw'),"}, "must be of one kind: a fossilized seed changes"),
        (
            {"more_host": "def __init__(self, input_shape, classes, *, width): pass"},
            "needs an annotation and a default",
        ),
        ({"more_host": ")"}, "does not import: SyntaxError"),
    ],
)
def test_what_is_wrong_with_a_plugin_is_said_in_one_line_before_any_actor_starts(
    changes: dict[str, str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = write_plugin(tmp_path, **changes)
    error = refused(["train", "--plugin", name, "--task", name], capsys, monkeypatch)
    assert message.format(name=name) in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --plugin my_package.my_module", "plugin 'my_package.my_module' does not import: ModuleNotFoundError"),
        ("tasks --plugin nowhere", "plugin 'nowhere' does not import"),
        ("tasks --plugin time", "plugin 'time' is no file of Python"),
        ("train --plugin --task photos", "--plugin expects a value"),
        ("train --task pydoc --set host.context=32", "64 tokens is longer than the host's context of 32"),
        (
            "train --task pydoc --set data.sequence_length=100",
            "lower data.sequence_length to 64, or raise host.context",
        ),
        ("train --set host.kind=zebra", "unknown host 'zebra': expected one of"),
        ("train --set host.widht=3", "unknown task setting 'host.widht'"),
        ("train --set host.base_channels=0", "host.base_channels=0: Input should be greater than or equal to 1"),
        ("train --set host.base_channels=many", "host.base_channels='many': Input should be a valid integer"),
        ("train --slot block3_post", "unknown injection point 'block3_post'"),
        ("heuristic --slot block1_pots", "did you mean 'block1_post'?"),
        ("train --task cifar10 --hub --data-dir .", "--hub and --data-dir exclude each other"),
        ("train --hub", "the hub has no copy of digits"),
        ("train --set host.kind=transformer", "host 'transformer' reads texts (tokens,), got samples (1, 8, 8)"),
    ],
)
def test_bad_input_about_hosts_and_data_is_one_line_before_any_actor_starts(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert message in refused(arguments.split(), capsys, monkeypatch)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("@data_source('{name}'", "data source 'digits' is already registered"),
        ("@host('{name}'", "host 'digits' is already registered"),
        ("    name='{name}'", "task 'digits' is already registered"),
    ],
)
def test_names_that_are_taken_are_refused(
    line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "host" in message:
        host("digits")(CNNHost)
    name = write_plugin(tmp_path)
    path = tmp_path / f"{name}.py"
    wanted = line.format(name=name).replace("'", '"')
    assert wanted in path.read_text()
    path.write_text(path.read_text().replace(wanted, wanted.replace(name, "digits")))
    assert message in refused(["tasks", "--plugin", name], capsys, monkeypatch)


def test_a_task_that_cannot_be_used_does_not_hide_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = write_plugin(tmp_path, host="self.injection_points = {}")
    assert run(["tasks", "--plugin", name]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{name} cannot be used: host Host has no injection points" in printed
    assert "tinystories" in printed


def test_another_host_can_learn_an_old_task_with_its_own_options(tmp_path: Path) -> None:
    load_plugins(["examples.photo_mixer"])
    task = get_task_spec("digits", {"host.kind": "mixer", "host.width": 6})
    assert task.host.options == {"width": 6, "blocks": 2, "patch": 4}
    assert "photos" in task_names()
