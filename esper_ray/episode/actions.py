"""The controller's actions and which of them are legal."""

from collections.abc import Sequence
from enum import Enum
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from esper_ray.episode.signals import Signals
from esper_ray.errors import ConfigurationError, unknown_name
from esper_ray.lifecycle import SeedStage, check_gate
from esper_ray.models import MorphogeneticModel, SeedSlot, list_blueprints
from esper_ray.tasks import DecisionSettings

ActionMask = NDArray[np.int8]


class Decision(str, Enum):
    """The four kinds of action."""

    WAIT = "WAIT"
    GERMINATE = "GERMINATE"
    FOSSILIZE = "FOSSILIZE"
    CULL = "CULL"


class ActionTable:
    """Discrete actions: 0 WAIT; 1…N GERMINATE_<BLUEPRINT> by parameter count; N+1 FOSSILIZE; N+2 CULL."""

    WAIT = 0

    def __init__(self, blueprint_ids: Sequence[str]) -> None:
        self.blueprint_ids = tuple(blueprint_ids)
        self.fossilize = len(self.blueprint_ids) + 1
        self.cull = len(self.blueprint_ids) + 2
        germinate = (f"{Decision.GERMINATE.value}_{name.upper()}" for name in self.blueprint_ids)
        self.names: tuple[str, ...] = (Decision.WAIT.value, *germinate, Decision.FOSSILIZE.value, Decision.CULL.value)

    @classmethod
    def of(
        cls,
        model: MorphogeneticModel,
        device: str | torch.device = "cpu",
        blueprints: Sequence[str] | None = None,
    ) -> "ActionTable":
        """Returns the actions for the blueprints that fit the model's slot and can be trained on `device`.

        Args:
            blueprints: only these of them, see `DecisionSettings.blueprints`; None: all.
        """
        slot = model.seed_slot
        fitting = [b.blueprint_id for b in list_blueprints(slot.topology, slot.width, device)]
        return cls([name for name in fitting if blueprints is None or name in blueprints])

    @classmethod
    def from_names(cls, names: Sequence[str]) -> "ActionTable":
        """Returns the table whose `names` these are."""
        prefix = f"{Decision.GERMINATE.value}_"
        return cls([name.removeprefix(prefix).lower() for name in names if name.startswith(prefix)])

    def __len__(self) -> int:
        return len(self.names)

    def kind(self, action: int) -> Decision:
        """Returns which of the four kinds an action is."""
        return Decision(self.names[action].partition("_")[0])

    def germinate(self, blueprint_id: str) -> int:
        """Returns the action that germinates a blueprint.

        Raises:
            ConfigurationError: the blueprint is not among the actions.
        """
        if blueprint_id not in self.blueprint_ids:
            raise ConfigurationError(unknown_name("blueprint", blueprint_id, self.blueprint_ids))
        return 1 + self.blueprint_ids.index(blueprint_id)

    def legal(self, slot: SeedSlot, signals: Signals, epoch: int, settings: DecisionSettings) -> ActionMask:
        """Returns the mask after `epoch` completed epochs: (len(self),) int8, 1 where an action is legal."""
        mask = np.zeros(len(self), dtype=np.int8)
        mask[self.WAIT] = 1
        if (
            slot.is_empty
            and epoch >= settings.min_germination_epoch
            and signals.plateau_count >= settings.min_plateau
            and (signals.stabilised or not settings.require_stabilised)
        ):
            mask[1 : self.fossilize] = 1
        state = slot.state
        if state is not None and slot.is_active:
            mask[self.cull] = state.age >= settings.min_cull_age
            if state.stage == SeedStage.PROBATIONARY:
                mask[self.fossilize] = check_gate(SeedStage.FOSSILIZED, state, slot.settings).passed
        return mask


class LegalActions(spaces.Discrete):  # type: ignore[type-arg]
    """A Discrete space whose `sample()` without a mask draws among the actions that are legal now.

    So programs that act at random, Gymnasium's own checker among them, respect the mask.
    """

    def __init__(self, mask: ActionMask) -> None:
        super().__init__(len(mask))
        self.mask = mask

    def sample(self, mask: Any = None, probability: Any = None) -> Any:
        """Draws an action; with neither `mask` nor `probability` among the legal ones."""
        if mask is None and probability is None:
            mask = self.mask
        return super().sample(mask, probability)
