"""The heuristic policy: blueprints in turn, penalties that pass, thresholds of the task."""

import numpy as np
import pytest
from fast_tasks import make_fast_task

from esper_ray.episode import ActionTable, MorphogenesisEnv, ObservationTable
from esper_ray.episode.env import Observation
from esper_ray.episode.observation import POINTS_SCALE
from esper_ray.episode.rollout import play_episode
from esper_ray.lifecycle import SeedStage
from esper_ray.models import list_blueprints
from esper_ray.policies import HeuristicPolicy
from esper_ray.tasks import TaskSpec

S = SeedStage
TASK = make_fast_task(heuristic__cull_after=5)
ACTIONS = ActionTable([b.blueprint_id for b in list_blueprints("cnn", 2)])
TABLE = ObservationTable(ACTIONS.blueprint_ids)


def policy(task: TaskSpec = TASK) -> HeuristicPolicy:
    return HeuristicPolicy.of(task, ACTIONS)


def seen(
    stage: SeedStage = S.DORMANT,
    legal: tuple[str, ...] = (),
    epochs: int = 0,
    improvement: float = 0.0,
    contribution: float = 0.0,
) -> Observation:
    """What the policy sees of a slot; WAIT is always legal, "GERMINATE" stands for every blueprint."""
    values = np.zeros(len(TABLE), np.float32)
    values[TABLE.index["stage"]] = stage / len(SeedStage)
    values[TABLE.index["epochs_in_stage"]] = epochs / TASK.max_epochs
    values[TABLE.index["stage_improvement"]] = improvement / POINTS_SCALE
    values[TABLE.index["contribution"]] = contribution / POINTS_SCALE
    mask = [name == "WAIT" or name.partition("_")[0] in legal for name in ACTIONS.names]
    return {"observations": values, "action_mask": np.array(mask, np.int8)}


EMPTY = seen(legal=("GERMINATE",))
PROMISING = seen(S.PROBATIONARY, ("FOSSILIZE", "CULL"), contribution=3.0)
USELESS = seen(S.PROBATIONARY, ("CULL",), contribution=-0.5)


def name(action: int) -> str:
    return ACTIONS.names[action]


def test_blueprints_take_turns_in_the_order_of_the_specification() -> None:
    heuristic = policy()
    turns = [name(heuristic.act(EMPTY)) for _ in range(6)]
    order = ("CONV_LIGHT", "CONV_HEAVY", "ATTENTION", "NORM", "DEPTHWISE", "CONV_LIGHT")
    assert turns == [f"GERMINATE_{blueprint}" for blueprint in order]
    heuristic.start_episode(1)
    assert name(heuristic.act(EMPTY)) == "GERMINATE_CONV_LIGHT"


def test_a_blueprint_with_a_penalty_is_skipped_until_half_of_it_has_passed_often_enough() -> None:
    heuristic = HeuristicPolicy(TASK, ACTIONS, ["norm", "conv_light"])
    for _ in range(2):
        heuristic.act(EMPTY)  # norm, then conv_light
    heuristic.act(EMPTY)  # norm again
    assert name(heuristic.act(USELESS)) == "CULL"
    heuristic._penalties["norm"] = 8.0
    assert name(heuristic.act(EMPTY)) == "GERMINATE_CONV_LIGHT"
    assert name(heuristic.act(EMPTY)) == "GERMINATE_NORM"  # 8 is 2 by now, below 3


def test_it_waits_while_every_blueprint_is_under_a_penalty() -> None:
    heuristic = HeuristicPolicy(TASK, ACTIONS, ["norm"])
    heuristic.act(EMPTY)
    heuristic.act(USELESS)
    heuristic._penalties["norm"] = 20.0
    assert [name(heuristic.act(EMPTY)) for _ in range(3)] == ["WAIT", "WAIT", "GERMINATE_NORM"]


def test_it_waits_where_the_mask_lets_nothing_germinate() -> None:
    assert name(policy().act(seen())) == "WAIT"
    assert name(policy().act(seen(S.EMBARGOED))) == "WAIT"


@pytest.mark.parametrize("stage", [S.TRAINING, S.BLENDING, S.SHADOWING])
@pytest.mark.parametrize(
    ("epochs", "improvement", "expected"),
    [(5, -2.5, "CULL"), (4, -2.5, "WAIT"), (5, -1.9, "WAIT"), (5, 8.0, "WAIT")],
)
def test_it_culls_a_seed_under_which_accuracy_falls(
    stage: SeedStage, epochs: int, improvement: float, expected: str
) -> None:
    heuristic = policy()
    heuristic.act(EMPTY)
    assert name(heuristic.act(seen(stage, ("CULL",), epochs, improvement))) == expected
    assert name(heuristic.act(seen(stage, (), 5, -9.0))) == "WAIT"


def test_it_fossilizes_what_contributes_and_culls_the_rest() -> None:
    heuristic = policy()
    heuristic.act(EMPTY)
    assert name(heuristic.act(PROMISING)) == "FOSSILIZE"
    assert name(heuristic.act(USELESS)) == "CULL"
    assert name(heuristic.act(seen(S.PROBATIONARY, contribution=-0.5))) == "WAIT"
    assert name(heuristic.act(seen(S.FOSSILIZED))) == "WAIT"


def test_the_task_s_thresholds_are_used() -> None:
    task = make_fast_task(heuristic__cull_after=2, heuristic__cull_drop=0.5)
    heuristic = policy(task)
    heuristic.act(EMPTY)
    assert name(heuristic.act(seen(S.TRAINING, ("CULL",), 2, -0.6))) == "CULL"


def test_it_plays_whole_episodes_and_repeats_them() -> None:
    env = MorphogenesisEnv(TASK)
    heuristic = HeuristicPolicy.of(TASK, env.action_table)
    first = play_episode(env, heuristic, 3)
    assert "GERMINATE_CONV_LIGHT" in first.action_counts
    assert play_episode(env, heuristic, 3).epochs == first.epochs
