"""What the report computes: its numbers, its colours and the command that makes the run again."""

import shlex
from itertools import combinations
from typing import Any

import pytest

from esper_ray.cli.main import _parse
from esper_ray.lifecycle import SeedStage
from esper_ray.orchestration.config import TrainConfig
from esper_ray.report import palette
from esper_ray.report.aggregate import Bins, action_shares, blueprint_scores, gradient_map, learning_curve
from esper_ray.report.shell_command import shell_command
from esper_ray.report.specs import over_epochs, over_iterations


def test_a_command_says_only_what_differs_from_the_defaults() -> None:
    config = TrainConfig(task="pydoc", host_variety=True, set=("a=[1, 2]", "b=2"), plugin=("mine",), seed=3)
    changed = config.model_copy(update={"ppo": config.ppo.model_copy(update={"hidden": (32, 32), "lr_start": 0.002})})
    command = shell_command({"name": "train", **changed.model_dump(mode="json")})
    assert command == (
        "esper-ray train --task pydoc --plugin mine --host-variety --set 'a=[1, 2]' b=2 --seed 3 "
        "--ppo.lr-start 0.002 --ppo.hidden 32 32"
    )
    assert _parse(shlex.split(command)[1:]) == changed


def make_row(episode: int, iteration: int, decisions: list[str], stages: list[str], **more: Any) -> dict[str, Any]:
    count = len(decisions)
    own = {key: more.pop(key) for key in list(more) if key in ("contribution", "rolled_back", "gradient_health")}
    per_epoch = {"decision": decisions, "contribution": [None] * count, "rolled_back": [None] * count} | own
    totals = {"kept_val_accuracy": 50.0, "kept_blueprint": None, "final_stage": stages[-1], "added_parameters": 0}
    return {"episode": episode, "iteration": iteration, "stages": stages, "per_epoch": per_epoch, **totals, **more}


class TestNumbers:
    ACTIONS = ("WAIT", "GERMINATE_NORM", "GERMINATE_LORA", "FOSSILIZE", "CULL")

    def test_seeds_are_followed_to_their_end(self) -> None:
        decisions = ["GERMINATE_NORM", "CULL", "GERMINATE_LORA", "WAIT", "FOSSILIZE"]
        stages = ["GERMINATED", "CULLED", "GERMINATED", "PROBATIONARY", "FOSSILIZED"]
        kept = make_row(1, 1, decisions, stages, added_parameters=7, contribution=[None, None, None, 2.0, 4.0])
        lost = make_row(2, 1, ["GERMINATE_NORM", "GERMINATE_NORM"], ["TRAINING", "BLENDING"], rolled_back=["nan", None])
        norm, lora = blueprint_scores([kept, lost], self.ACTIONS)
        assert (norm["germinated"], norm["culled"], norm["removed"], norm["dropped"], norm["fossilized"]) == (
            3,
            1,
            1,
            1,
            0,
        )
        assert (lora["fossilized"], lora["contribution"], lora["parameters"]) == (1, 3.0, (7, 7))

    def test_shares_of_the_decisions_leave_wait_out_and_add_up(self) -> None:
        rows = [make_row(1, 1, ["WAIT", "WAIT", "CULL", "GERMINATE_NORM"], ["DORMANT"] * 4)]
        shares, waits = action_shares(rows, self.ACTIONS, Bins.of(rows))
        assert sum(row["share"] for row in shares) == pytest.approx(100)
        assert {row["action"]: row["share"] for row in shares if row["share"]} == {"CULL": 50, "GERMINATE_NORM": 50}
        assert waits[0]["share"] == 50

    def test_the_spread_of_an_iteration_is_over_its_episodes(self) -> None:
        rows = [make_row(i, 1, ["WAIT"], ["DORMANT"], kept_val_accuracy=value) for i, value in enumerate((40.0, 60.0))]
        (point,) = learning_curve(rows)
        assert (point["mean"], point["std"], point["low"], point["episodes"]) == (50, 14.14, 35.86, 2)

    def test_the_gradient_map_averages_over_live_seeds_only(self) -> None:
        rows = [make_row(i, i, ["WAIT"] * 2, ["TRAINING"] * 2, gradient_health=[None, i / 4]) for i in (2, 4)]
        cells = gradient_map(rows, Bins(4), "gradient_health")
        assert [(cell["epoch"], cell["value"], cell["seeds"]) for cell in cells] == [(2, 0.75, 2)]


# Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency", 2009.
VISION = {
    "full": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}


def seen_as(colour: str, vision: str) -> tuple[float, float, float]:
    """Returns the colour in Oklab (Ottosson, 2020), as someone with that vision sees it."""
    r, g, b = (
        min(1.0, max(0.0, sum(weight * part for weight, part in zip(row, palette.linear(colour), strict=True))))
        for row in VISION[vision]
    )
    x = (0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b) ** (1 / 3)
    y = (0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b) ** (1 / 3)
    z = (0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b) ** (1 / 3)
    return (
        0.2104542553 * x + 0.7936177850 * y - 0.0040720468 * z,
        1.9779984951 * x - 2.4285922050 * y + 0.4505937099 * z,
        0.0259040371 * x + 0.7827717662 * y - 0.8086757660 * z,
    )


class TestColours:
    JUST_NOTICEABLE = 0.02

    @pytest.mark.parametrize("dark", [False, True])
    @pytest.mark.parametrize("vision", VISION)
    def test_stages_and_decisions_tell_apart_for_every_vision(self, dark: bool, vision: str) -> None:
        theme = palette.theme(dark)
        stages = [f"stage-{stage.name.lower()}" for stage in (SeedStage.DORMANT, *palette.STAGE_COLOURS)]
        decisions = [*(f"cat-{i}" for i in range(5)), "stage-fossilized", "stage-culled"]
        for group in ([*stages, "stage-embargoed"], decisions, ["learned", "baseline", "second", "third", "ink-2"]):
            for one, other in combinations(group, 2):
                apart = sum(
                    (a - b) ** 2
                    for a, b in zip(seen_as(theme[one], vision), seen_as(theme[other], vision), strict=True)
                )
                assert apart**0.5 > 3 * self.JUST_NOTICEABLE, (one, other)

    @pytest.mark.parametrize("dark", [False, True])
    def test_text_and_lines_stand_out_from_what_they_lie_on(self, dark: bool) -> None:
        theme = palette.theme(dark)
        for name in ("ink", "ink-2", "accent", "good", "bad"):
            assert all(palette.contrast(theme[name], theme[behind]) >= 4.5 for behind in ("page", "surface"))
        assert palette.contrast(theme["ink"], theme["notice"]) >= 4.5
        assert all(
            palette.contrast(theme[n], theme["surface"]) >= 3 for n in ("learned", "baseline", "second", "third")
        )

    @pytest.mark.parametrize("dark", [False, True])
    def test_values_are_ordered_by_lightness(self, dark: bool) -> None:
        steps = [palette.luminance(palette.theme(dark)[f"seq-{i}"]) for i in range(len(palette.SEQUENCE))]
        assert steps == sorted(steps)


@pytest.mark.parametrize("last", [1, 2, 3, 16, 75])
def test_an_axis_of_iterations_has_no_label_twice(last: int) -> None:
    """Vega puts ticks at halves where the numbers end at 1 or 2, and writes them as whole ones."""
    for x in (over_iterations(last), over_epochs(last)):
        assert x["axis"].get("values", []) == ([*range(1, last + 1)] if last < 3 else [])
