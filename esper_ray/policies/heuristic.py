"""The heuristic policy, the baseline to beat: it tries the blueprints in turn and keeps a seed that helps."""

from collections.abc import Sequence

from esper_ray.episode import ActionTable, ObservationTable
from esper_ray.episode.env import Observation
from esper_ray.episode.observation import POINTS_SCALE
from esper_ray.lifecycle import SeedStage
from esper_ray.models import registered_blueprints
from esper_ray.seeding import forked_generators
from esper_ray.tasks import TaskSpec, create_model

_WATCHED = frozenset({SeedStage.TRAINING, SeedStage.BLENDING, SeedStage.SHADOWING})


class HeuristicPolicy:
    """Germinates as soon as it may, culls a seed under which accuracy falls, fossilizes one that contributes.

    Blueprints take turns; one that was culled lately is passed over. The action mask decides when germination and
    culling are legal, by the thresholds of the task.

    Args:
        task: what is trained; its `heuristic` settings are used.
        actions: the action table of the environment.
        rotation: blueprints in the order of their turns; those that the action table lacks are left out.
    """

    def __init__(self, task: TaskSpec, actions: ActionTable, rotation: Sequence[str]) -> None:
        self._settings = task.heuristic
        self._max_epochs = task.max_epochs
        self._actions = actions
        self.action_names = actions.names
        self._index = ObservationTable(actions.blueprint_ids).index
        self._rotation = [name for name in rotation if name in actions.blueprint_ids]
        self.start_episode(0)

    @classmethod
    def of(cls, task: TaskSpec, actions: ActionTable) -> "HeuristicPolicy":
        """Returns the policy whose blueprints take turns in the order of their registration."""
        with forked_generators():
            topology = create_model(task).seed_slot.topology
        return cls(task, actions, registered_blueprints(topology))

    def start_episode(self, episode_seed: int) -> None:
        """Starts the rotation over and forgets the penalties."""
        self._next = 0
        self._growing: str | None = None
        self._penalties = dict.fromkeys(self._rotation, 0.0)

    def act(self, observation: Observation) -> int:
        """Returns a legal action."""
        self._penalties = {name: penalty * self._settings.penalty_decay for name, penalty in self._penalties.items()}
        stage = SeedStage(round(self._read(observation, "stage") * len(SeedStage)))
        mask = observation["action_mask"]
        if stage == SeedStage.DORMANT and mask[1 : self._actions.fossilize].any():
            return self._germinate()
        if stage == SeedStage.PROBATIONARY:
            if mask[self._actions.fossilize]:
                return self._actions.fossilize
            if self._read(observation, "contribution") <= 0 and mask[self._actions.cull]:
                return self._cull()
        if stage in _WATCHED and self._fails(observation) and mask[self._actions.cull]:
            return self._cull()
        return ActionTable.WAIT

    def _read(self, observation: Observation, name: str) -> float:
        return float(observation["observations"][self._index[name]])

    def _fails(self, observation: Observation) -> bool:
        epochs = round(self._read(observation, "epochs_in_stage") * self._max_epochs)
        drop = -self._read(observation, "stage_improvement") * POINTS_SCALE
        return epochs >= self._settings.cull_after and drop > self._settings.cull_drop

    def _germinate(self) -> int:
        """Germinates the next blueprint in turn that is not under a penalty; waits if all are."""
        for turn in range(self._next, self._next + len(self._rotation)):
            name = self._rotation[turn % len(self._rotation)]
            if self._penalties[name] < self._settings.max_penalty:
                self._next = turn + 1
                self._growing = name
                return self._actions.germinate(name)
        return ActionTable.WAIT

    def _cull(self) -> int:
        assert self._growing is not None, "only what was germinated here can be culled"
        self._penalties[self._growing] += self._settings.penalty_per_cull
        return self._actions.cull
