"""The tasks that come with the package, and where each departs from the defaults in `settings.py`."""

from esper_ray.lifecycle import LifecycleSettings
from esper_ray.tasks.registry import register_task
from esper_ray.tasks.settings import (
    DataSettings,
    DecisionSettings,
    HeuristicSettings,
    HostSettings,
    RewardSettings,
    VarietySettings,
)
from esper_ray.tasks.spec import TaskSpec
from esper_ray.training import OptimizerSettings

_SHORT_LIFE = LifecycleSettings(training_dwell=2, blending_steps=3, shadowing_dwell=1, embargo_epochs=2)
_SHORT_PATIENCE = HeuristicSettings(cull_after=2)
_EARLY_DECISIONS = DecisionSettings(min_germination_epoch=3, min_plateau=0, require_stabilised=False, min_cull_age=3)
"""Smaller thresholds than the defaults, for episodes of 25 epochs: a seed can be PROBATIONARY at epoch 9."""

register_task(
    TaskSpec(
        name="digits",
        summary="a host of one narrow block on 8×8 handwritten digits; seconds per episode, no download",
        input_shape=(1, 8, 8),
        classes=10,
        max_epochs=25,
        data=DataSettings(source="digits", batch_size=64),
        host=HostSettings(kind="cnn", base_channels=8, blocks=1),
        variety=VarietySettings(
            hosts=(
                {"blocks": 1, "base_channels": 8},
                {"blocks": 1, "base_channels": 16},
                {"blocks": 2, "base_channels": 2},
                {"blocks": 2, "base_channels": 16},
            ),
            lr_factor=(0.5, 3.0),
            train_share=(0.1, 1.0),
            label_noise=(0.0, 0.1),
        ),
        host_optimizer=OptimizerSettings(lr=0.02, weight_decay=5e-4),
        seed_optimizer=OptimizerSettings(lr=0.05),
        lifecycle=_SHORT_LIFE,
        decisions=_EARLY_DECISIONS,
        heuristic=_SHORT_PATIENCE,
    )
)
register_task(
    TaskSpec(
        name="fashion_mnist",
        summary="a narrow host of two blocks on 10,000 images of Fashion-MNIST",
        input_shape=(1, 28, 28),
        classes=10,
        max_epochs=25,
        episodes_per_iteration=8,
        data=DataSettings(source="fashion_mnist", train_samples=10_000, validation_samples=2_000, batch_size=128),
        host=HostSettings(kind="cnn", base_channels=4, blocks=2),
        variety=VarietySettings(options={"blocks": (1, 2, 3), "base_channels": (2, 4, 8)}),
        lifecycle=_SHORT_LIFE,
        decisions=_EARLY_DECISIONS,
        heuristic=_SHORT_PATIENCE,
    )
)
register_task(
    TaskSpec(
        name="cifar10",
        summary="a deliberately weak host of three blocks on CIFAR-10, with random crops and flips",
        input_shape=(3, 32, 32),
        classes=10,
        max_epochs=75,
        episodes_per_iteration=8,
        data=DataSettings(source="cifar10", batch_size=128, augmentation="crop_and_flip"),
        host=HostSettings(kind="cnn", base_channels=8, blocks=3),
        variety=VarietySettings(options={"blocks": (2, 3, 4), "base_channels": (4, 8, 16)}),
    )
)
register_task(
    TaskSpec(
        name="pydoc",
        summary="a small transformer on the bytes of Python's language reference; no download",
        task_type="lm",
        max_epochs=25,
        episodes_per_iteration=8,
        data=DataSettings(
            source="pydoc", train_samples=1_600, batch_size=32, evaluation_batch_size=128, sequence_length=64
        ),
        host=HostSettings(kind="transformer", layers=2, heads=4, width=64, context=64, dropout=0.0),
        variety=VarietySettings(options={"layers": (1, 2, 3), "width": (32, 64)}, label_noise=(0.0, 0.0)),
        host_optimizer=OptimizerSettings(kind="adamw", lr=2e-3, weight_decay=0.01),
        seed_optimizer=OptimizerSettings(kind="adamw", lr=2e-3, weight_decay=0.01),
        lifecycle=_SHORT_LIFE,
        decisions=_EARLY_DECISIONS,
        heuristic=_SHORT_PATIENCE,
        reward=RewardSettings(mode="loss", typical_loss_delta=0.05, target_loss=1.5),
    )
)
register_task(
    TaskSpec(
        name="tinystories",
        summary="a transformer of six layers on short stories, in GPT-2 tokens where that tokenizer is at hand",
        task_type="lm",
        max_epochs=50,
        episodes_per_iteration=8,
        data=DataSettings(
            source="tinystories",
            train_samples=12_800,
            validation_samples=1_000,
            batch_size=32,
            evaluation_batch_size=8,
            sequence_length=256,
            tokenizer="auto",
        ),
        host=HostSettings(kind="transformer"),
        variety=VarietySettings(options={"layers": (2, 4, 6), "width": (192, 384)}, label_noise=(0.0, 0.0)),
        host_optimizer=OptimizerSettings(kind="adamw", lr=1e-3, weight_decay=0.01),
        seed_optimizer=OptimizerSettings(kind="adamw", lr=1e-3, weight_decay=0.01),
        reward=RewardSettings(mode="loss", typical_loss_delta=0.05, target_loss=1.0),
    )
)
