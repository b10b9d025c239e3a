"""Learners whose actors write down every host epoch that they train."""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fakes import CPURunner, TracedEnv
from learners import TASK

from esper_ray.orchestration.config import LearnerSettings
from esper_ray.orchestration.fleet.actor_envs import ActorEnvs, ActorSettings
from esper_ray.orchestration.fleet.placement import Placement
from esper_ray.orchestration.learner.algorithm import EpisodeAlgorithm
from esper_ray.orchestration.learner.episode_ppo import EpisodePPO
from esper_ray.orchestration.learner.learner_config import Learning, build_config

EVERY = 2
LOST_AT = 8
"""Epoch in front of which an actor is lost; the last one that was written down is the sixth."""


class Trained(NamedTuple):
    """A host epoch: who trained it, of which episode, and where."""

    runner: int
    owner: int
    number: int
    epoch: int
    node: str
    gpu: str | None = None


class Trace:
    """What the actors of the learners that are built here have trained, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._file, self.marker, self._kept = folder / "trace", folder / "marker", folder / "in_progress"
        self._kept.mkdir()

    def build(
        self,
        placement: Placement,
        *,
        episodes: int = 2,
        policy: Literal["mlp", "lstm"] = "mlp",
        checkpoints: bool = False,
        seed: int = 3,
        **env_config: Any,
    ) -> EpisodeAlgorithm:
        """Builds actors and learner; `env_config` is for `TracedEnv`. All share the host checkpoints."""
        kept = {"folder": str(self._kept), "key": "00" * 32, "every": EVERY} if checkpoints else None
        learning = Learning(LearnerSettings(minibatch_size=32, update_epochs=2), 8, episodes, seed, policy=policy)
        config = build_config(ActorSettings(TASK, host_checkpoints=kept), learning, placement)
        traced = {"trace": str(self._file), "marker": str(self.marker), **env_config}
        config.environment(ActorEnvs.of(TracedEnv), env_config={**config.env_config, **traced})
        config.env_runners(env_runner_cls=CPURunner)
        return EpisodePPO(config=config)

    def take(self) -> list[Trained]:
        """Returns the epochs that were trained since the last time."""
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        self._file.write_text("")
        return [Trained(*json.loads(line)) for line in lines]

    def in_progress(self) -> list[Path]:
        """Returns the episodes that are written down."""
        return list(self._kept.iterdir())
