"""A plugin of the smallest kind, as a file; tests make it sound, faulty, slow or talkative."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from textwrap import dedent, indent

from esper_ray import plugins
from esper_ray.data import source
from esper_ray.models import blueprints, hosts
from esper_ray.tasks import registry

PLUGIN = '''
"""A host, a blueprint, a data set and a task, all called {name}."""

import numpy as np
import torch
from torch import nn

from esper_ray.data import data_source
from esper_ray.lifecycle import LifecycleSettings
from esper_ray.models import blueprint, host
from esper_ray.tasks import DataSettings, DecisionSettings, HostSettings, TaskSpec, register_task
from esper_ray.training import OptimizerSettings


@data_source("{name}", "two clouds of points")
def read(files):
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    points = rng.normal(size=(60, 4)) + labels[:, None]
    splits = {{"train": (points[:30], labels[:30]), "validation": (points[30:45], labels[30:45]),
               "test": (points[45:], labels[45:])}}
{data}
    return splits


@host("{name}")
class Host(nn.Module):
    topology = "{name}"

    def __init__(self, input_shape, classes, *, width: int = 8):
        super().__init__()
        self.injection_points = {{"middle": width}}
        self.enter, self.leave = nn.Linear(input_shape[0], width), nn.Linear(width, classes)
        self.slot = nn.Identity()
{host}

    def register_slot(self, slot_id, module):
        self.slot = module

    def forward(self, points):
{forward}
        return self.leave(self.slot(torch.relu(self.enter(points))))
{more_host}


@blueprint("{name}", topology="{name}")
class Seed(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)
{seed}

    def forward(self, features):
        return features + self.linear(features)
{more_seed}


register_task(TaskSpec(
    name="{name}", summary="", input_shape=(4,), classes=2, max_epochs=12, episodes_per_iteration=4,
    data=DataSettings(source="{name}", batch_size=15), host=HostSettings(kind="{name}"),
    lifecycle=LifecycleSettings(training_dwell=1, blending_steps=2, min_blending_epochs=1, shadowing_dwell=1),
    decisions=DecisionSettings(min_germination_epoch=2, min_plateau=0, require_stabilised=False, min_cull_age=2),
    {task}
))
'''
_names = (f"own{number}" for number in count())


def write_plugin(folder: Path, **changes: str) -> str:
    """Writes a plugin, sound but for the changes, under a name that no other test uses; returns the name."""
    name = next(_names)
    parts = {part: "" for part in ("data", "host", "forward", "more_host", "seed", "more_seed", "task")}
    levels = {"data": 4, "host": 8, "forward": 8, "more_host": 4, "seed": 8, "more_seed": 4}
    parts |= {part: indent(dedent(text), " " * levels.get(part, 0)) for part, text in changes.items()}
    (folder / f"{name}.py").write_text(PLUGIN.format(name=name, **parts))
    return name


@contextmanager
def registries_as_before(folder: Path) -> Iterator[None]:
    """Afterwards nothing is registered, loaded as a plugin or imported from `folder` that was not before."""
    registries = [
        getattr(module, name)
        for module, names in {
            registry: ("_TASKS", "_WRONG", "_CLASHES", "_FUNCTIONS"),
            hosts: ("_FACTORIES", "_OPTIONS"),
            blueprints: ("_REGISTRY",),
            source: ("_SOURCES",),
            plugins: ("_LOADED",),
        }.items()
        for name in names
    ]
    contents, path, modules = [dict(kept) for kept in registries], [*sys.path], set(sys.modules)
    yield
    loaded = set(plugins._LOADED) - set(contents[-1])
    for kept, content in zip(registries, contents, strict=True):
        kept.clear()
        kept.update(content)
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        file = getattr(sys.modules[name], "__file__", None)
        if name in loaded or (file and Path(file).resolve().is_relative_to(folder.resolve())):
            del sys.modules[name]
