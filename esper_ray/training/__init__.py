"""Training and evaluation of a model, an epoch at a time, with optimizers and gradient statistics."""

from esper_ray.training.epoch import _train_one_epoch
from esper_ray.training.evaluation import Evaluation, evaluate
from esper_ray.training.gradients import GradientStats, collect_seed_gradients
from esper_ray.training.optimizers import (
    OptimizerSettings,
    adopt_seed,
    build_optimizer,
    decay_factor,
    scale_learning_rates,
)
from esper_ray.training.work import EvaluationWork, Steps, TrainingWork, run_one

__all__ = [
    "Evaluation",
    "EvaluationWork",
    "GradientStats",
    "OptimizerSettings",
    "Steps",
    "TrainingWork",
    "_train_one_epoch",
    "adopt_seed",
    "build_optimizer",
    "collect_seed_gradients",
    "decay_factor",
    "evaluate",
    "run_one",
    "scale_learning_rates",
]
