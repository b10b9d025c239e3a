"""Scripted policies: wait, act at random, follow a fixed schedule, replay recorded decisions."""

from collections.abc import Sequence

import numpy as np

from esper_ray.episode import ActionTable
from esper_ray.episode.env import Observation
from esper_ray.errors import ConfigurationError, unknown_name
from esper_ray.seeding import Stream, derive_seed


class WaitPolicy:
    """Never grows anything: the host as it would have been."""

    def start_episode(self, episode_seed: int) -> None:
        """Does nothing: the policy has no state."""

    def act(self, observation: Observation) -> int:
        """Returns WAIT."""
        return ActionTable.WAIT


class RandomPolicy:
    """Draws uniformly among the legal actions; the draws follow from the episode seed."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def start_episode(self, episode_seed: int) -> None:
        """Seeds the draws."""
        self._rng = np.random.default_rng(derive_seed(episode_seed, Stream.DECISION))

    def act(self, observation: Observation) -> int:
        """Returns a legal action."""
        return int(self._rng.choice(np.flatnonzero(observation["action_mask"])))


class SchedulePolicy:
    """Germinates one blueprint at a given epoch and fossilizes it from another on, as soon as each is legal.

    Args:
        actions: the action table of the task.
        blueprint_id: what to germinate.
        germinate_at: completed epochs before germination, at least.
        fossilize_at: completed epochs before fossilizing, at least.

    Raises:
        ConfigurationError: the table lacks the blueprint.
    """

    def __init__(self, actions: ActionTable, blueprint_id: str, germinate_at: int = 0, fossilize_at: int = 0) -> None:
        self.action_names = actions.names
        self._germinate = actions.germinate(blueprint_id)
        self._fossilize = actions.fossilize
        self._germinate_at = germinate_at
        self._fossilize_at = fossilize_at
        self._epoch = 0
        self._germinated = False

    def start_episode(self, episode_seed: int) -> None:
        """Starts the schedule over."""
        self._epoch = 0
        self._germinated = False

    def act(self, observation: Observation) -> int:
        """Returns the scheduled action if its time has come and it is legal, else WAIT."""
        mask, epoch = observation["action_mask"], self._epoch
        self._epoch += 1
        if not self._germinated and epoch >= self._germinate_at and mask[self._germinate]:
            self._germinated = True
            return self._germinate
        if epoch >= self._fossilize_at and mask[self._fossilize]:
            return self._fossilize
        return ActionTable.WAIT


class ReplayPolicy:
    """Repeats the decisions of a recorded episode.

    Args:
        actions: the action table of the task.
        decisions: names of the actions, one per epoch.

    Raises:
        ConfigurationError: the table lacks one of them.
    """

    def __init__(self, actions: ActionTable, decisions: Sequence[str]) -> None:
        self.action_names = actions.names
        known = {name: action for action, name in enumerate(actions.names)}
        for name in decisions:
            if name not in known:
                raise ConfigurationError(unknown_name("action", name, known))
        self._decisions = [known[name] for name in decisions]
        self._epoch = 0

    def start_episode(self, episode_seed: int) -> None:
        """Starts over."""
        self._epoch = 0

    def act(self, observation: Observation) -> int:
        """Returns the recorded action of this epoch.

        Raises:
            ConfigurationError: no action was recorded for it.
        """
        if self._epoch == len(self._decisions):
            raise ConfigurationError(f"{self._epoch} decisions are recorded, expected one for each epoch")
        self._epoch += 1
        return self._decisions[self._epoch - 1]
