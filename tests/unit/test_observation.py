"""Every value of the observation, from a state of which all is known."""

import numpy as np
import pytest

from esper_ray.episode import ObservationTable
from esper_ray.episode.observation import EpisodeView
from esper_ray.episode.signals import EpochOutcome, Signals
from esper_ray.lifecycle import SeedStage, SeedState

VIEW = EpisodeView(
    epoch=10,
    max_epochs=40,
    uniform_loss=2.0,
    outcome=EpochOutcome(1.0, 60.0, 1.5, 50.0, 1.7, 45.0, contribution=5.0),
    signals=Signals(0.2, 3.0, 4, 1.2, 55.0, (1.9, 1.8, 1.7, 1.6, 1.5), (30.0, 35.0, 40.0, 45.0, 50.0), stabilised=True),
    stage=SeedStage.BLENDING,
    state=SeedState(
        *("seed", "norm"),
        stage=SeedStage.BLENDING,
        alpha=0.25,
        age=6,
        epochs_in_stage=2,
        contribution=5.0,
        accuracy_at_stage_start=40.0,
        last_accuracy=50.0,
    ),
    occupied=True,
    gradients={
        **{"gradient_norm": 2.5, "gradient_health": 0.75, "has_vanishing": True, "has_exploding": False},
        **{"gradient_rms": 0.1, "host_gradient_norm": 20.0, "seed_gradient_ratio": 0.5},
    },
    embargo_epochs=5,
    host_parameters=1024,
    slot_width=16,
    train_share=0.5,
    seed_sizes={"norm": 3 * 1024},
)
EXPECTED = {
    **{"epoch": 0.25, "steps": 0.1, "train_loss": 0.5, "val_loss": 0.75, "loss_delta": 0.1},
    **{"train_accuracy": 0.6, "val_accuracy": 0.5, "accuracy_delta": 0.3, "plateau": 0.4},
    **{"best_val_accuracy": 0.55, "best_val_loss": 0.6},
    **{f"val_loss_{age}_ago": (1.5 + 0.1 * age) / 2 for age in range(5)},
    **{f"val_accuracy_{age}_ago": 0.5 - 0.05 * age for age in range(5)},
    **{"seed_present": 1, "stage": 4 / 11, "epochs_in_stage": 0.05, "alpha": 0.25, "stage_improvement": 0.2},
    **{"free_slots": 0, "contribution": 0.1, "host_gradient_norm": 1, "learning_phase": 1},
    **{"blueprint_norm": 1, "blueprint_mlp": 0},
    **{"seed_gradient_norm": 0.25, "seed_gradient_health": 0.75, "seed_has_vanishing": 1, "seed_has_exploding": 0},
    **{"seed_epochs_in_stage": 0.2, "seed_accuracy": 0.5, "seed_accuracy_delta": 0.3, "seed_stage": 4 / 11},
    **{"seed_alpha": 0.25, "seed_episode_time": 0.15},
    **{f"stage_is_{name}": 0 for name in ("dormant", "germinated", "training", "shadowing", "probationary")},
    **{f"stage_is_{name}": 0 for name in ("fossilized", "culled", "embargoed")},
    **{"stage_is_blending": 1, "embargo_left": 0, "last_decision": 0},
    **{"host_parameters": 10 / 16, "slot_width": 0.5, "train_share": 0.5, "growth_by_norm": 0.5, "growth_by_mlp": 0},
}


def test_every_value_is_the_one_that_its_name_and_unit_say() -> None:
    table = ObservationTable(["norm", "mlp"], hosts_differ=True)
    found = dict(zip(table.names, table.observe(VIEW).tolist(), strict=True))
    assert found == pytest.approx(EXPECTED)
    assert table.observe(VIEW).dtype == np.float32
