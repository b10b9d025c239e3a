"""The fixed schedule acts at its epochs, or as soon after them as it may."""

import numpy as np
import pytest

from esper_ray.episode import ActionTable
from esper_ray.policies import SchedulePolicy

ACTIONS = ActionTable(["norm", "conv_light"])


@pytest.mark.parametrize(("forbidden_for", "germinates", "fossilizes"), [(0, 2, 5), (2, 2, 5), (4, 4, 5), (6, 6, 7)])
def test_a_seed_germinates_once_and_is_fossilized(forbidden_for: int, germinates: int, fossilizes: int) -> None:
    policy = SchedulePolicy(ACTIONS, "conv_light", germinate_at=2, fossilize_at=5)
    for _ in range(2):
        policy.start_episode(0)
        acted = []
        for epoch in range(fossilizes + 1):
            mask = np.ones(len(ACTIONS), dtype=np.int8)
            mask[1 : ACTIONS.fossilize] = epoch >= forbidden_for
            mask[ACTIONS.fossilize] = epoch > germinates
            acted.append(policy.act({"observations": np.zeros(1), "action_mask": mask}))
        expected = {germinates: ACTIONS.germinate("conv_light"), fossilizes: ACTIONS.fossilize}
        assert acted == [expected.get(epoch, ActionTable.WAIT) for epoch in range(fossilizes + 1)]
