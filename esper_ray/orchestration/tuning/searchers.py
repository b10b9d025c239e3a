"""Builds Ray Tune's search space, search algorithm and scheduler from a search file."""

import tempfile
from pathlib import Path
from typing import Any

import ray.cloudpickle as pickle
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, Repeater, SearchAlgorithm, Searcher
from ray.tune.search.repeater import TRIAL_INDEX

from esper_ray.errors import ConfigurationError
from esper_ray.optional import needs, optional
from esper_ray.orchestration.tuning.search_file import (
    ASHA,
    PBT,
    Choice,
    Grid,
    LogUniform,
    Range,
    SearchFile,
    Uniform,
    Values,
)

SEED = "seed"
"""Key of the training seed in a trial's Tune configuration, beside the searched keys."""


class SeedRepeater(Repeater):
    """Tries each suggestion once with every seed, and tells the searcher the mean.

    Ray's Repeater gives the repetitions a number and forgets, when it is saved, which trials belong together.
    """

    def __init__(self, searcher: Searcher, seeds: tuple[int, ...]) -> None:
        super().__init__(searcher, repeat=len(seeds))
        self._seeds = seeds

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Returns the next trial's configuration."""
        config: dict[str, Any] | None = super().suggest(trial_id)
        if isinstance(config, dict):
            config[SEED] = self._seeds[config.pop(TRIAL_INDEX)]
        return config

    def save(self, checkpoint_path: str) -> None:
        """Writes the searcher's state and which trials belong together."""
        with tempfile.TemporaryDirectory() as folder:
            inner = Path(folder) / "searcher"
            self.searcher.save(str(inner))
            Path(checkpoint_path).write_bytes(pickle.dumps((inner.read_bytes(), self.get_state())))

    def restore(self, checkpoint_path: str) -> None:
        """Restores the state that `save` wrote."""
        inner_state, state = pickle.loads(Path(checkpoint_path).read_bytes())
        with tempfile.TemporaryDirectory() as folder:
            inner = Path(folder) / "searcher"
            inner.write_bytes(inner_state)
            self.searcher.restore(str(inner))
        self.set_state(state)


class SeparateSeeds(FIFOScheduler):
    """Compares trials with those of the same training seed only.

    Hosts follow from the seed, so one seed's trials score higher than another's whatever the setting is.

    Args:
        schedulers: one for each training seed.
    """

    def __init__(self, schedulers: dict[int, TrialScheduler]) -> None:
        super().__init__()
        self._of_seed = schedulers

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Forwards the call to the scheduler of the trial's training seed."""
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Forwards the call to the scheduler of the trial's training seed."""
        self._of(trial).on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Forwards the call to the scheduler of the trial's training seed; returns whether the trial goes on."""
        decision: str = self._of(trial).on_trial_result(tune_controller, trial, result)
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Forwards the call to the scheduler of the trial's training seed."""
        self._of(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Forwards the call to the scheduler of the trial's training seed."""
        self._of(trial).on_trial_remove(tune_controller, trial)

    def _of(self, trial: Trial) -> TrialScheduler:
        return self._of_seed[trial.config[SEED]]


class BoundedPBT(PopulationBasedTraining):
    """Population-based training that stays in the space, and in which each trial keeps its own training seed.

    Ray's multiplies by 0.8 or 1.2 whatever the range was, and takes over the other trial's seed as well. It also ends a
    trial for good, an iteration later, that takes over while its own last checkpoint is still being written.

    Args:
        bounds: key → lowest and highest value.
    """

    def __init__(self, bounds: dict[str, tuple[float, float]], **settings: Any) -> None:
        super().__init__(**settings)
        self._bounds = bounds

    def _get_new_config(self, trial: Trial, trial_to_clone: Trial) -> tuple[dict[str, Any], dict[str, Any]]:
        config, operations = super()._get_new_config(trial, trial_to_clone)
        within = {key: min(max(config[key], low), high) for key, (low, high) in self._bounds.items()}
        return {**config, **within, SEED: trial.config[SEED]}, operations

    def _exploit(self, tune_controller: Any, trial: Trial, trial_to_clone: Trial) -> None:
        # Else Ray Tune notes a STOP for when that checkpoint is there, and takes the next one for it.
        trial.temporary_state.saving_to = None
        super()._exploit(tune_controller, trial, trial_to_clone)


def param_space(search: SearchFile) -> dict[str, Any]:
    """Returns Ray Tune's search space; without the seeds where a `SeedRepeater` adds them."""
    space = {key: _domain(values) for key, values in search.space.items()}
    return space if search.algorithm == "optuna" else {**space, SEED: tune.grid_search(list(search.seeds))}


def search_algorithm(search: SearchFile, concurrent: int) -> SearchAlgorithm | Searcher:
    """Returns the search algorithm, with at most `concurrent` trials at a time."""
    if search.algorithm == "random":
        # Each draw is kept for all grids, the seeds among them.
        return BasicVariantGenerator(
            max_concurrent=concurrent, constant_grid_search=True, random_state=search.search_seed
        )
    require_optuna()
    from ray.tune.search.optuna import OptunaSearch

    searcher = OptunaSearch(metric=search.metric, mode=search.mode, seed=search.search_seed)
    return ConcurrencyLimiter(SeedRepeater(searcher, search.seeds), max_concurrent=concurrent)


def require_optuna() -> None:
    """Checks that Optuna is installed.

    Raises:
        ConfigurationError: it is not.
    """
    found = optional("optuna", "logging", "create_study")
    if found is None:
        raise ConfigurationError(
            f"algorithm optuna {needs('optuna', 'optuna (the extra [search])')}; or use algorithm random"
        )
    found[0].set_verbosity(found[0].WARNING)


def scheduler(search: SearchFile) -> TrialScheduler:
    """Returns the scheduler, which stops trials early or changes them."""
    chosen = search.scheduler
    if isinstance(chosen, ASHA):
        return SeparateSeeds(
            {
                seed: ASHAScheduler(
                    time_attr="training_iteration",
                    metric=search.metric,
                    mode=search.mode,
                    max_t=search.train.iterations,
                    grace_period=chosen.grace_iterations,
                    reduction_factor=chosen.reduction,
                )
                for seed in search.seeds
            }
        )
    if isinstance(chosen, PBT):
        drawn = {key: values for key, values in search.space.items() if not isinstance(values, Grid)}
        return BoundedPBT(
            bounds={key: values.bounds for key, values in drawn.items() if isinstance(values, Range)},
            time_attr="training_iteration",
            metric=search.metric,
            mode=search.mode,
            perturbation_interval=chosen.interval,
            hyperparam_mutations={
                key: list(values.choice) if isinstance(values, Choice) else _domain(values)
                for key, values in drawn.items()
            },
            quantile_fraction=chosen.quantile,
            resample_probability=chosen.resample,
            # With fewer places than trials, one would else be held against others that have hardly begun.
            synch=True,
            log_config=False,
        )
    return FIFOScheduler()


def _domain(values: Values) -> Any:
    if isinstance(values, Grid):
        return tune.grid_search(list(values.grid))
    if isinstance(values, Choice):
        return tune.choice(list(values.choice))
    if isinstance(values, Uniform):
        return tune.uniform(*values.uniform)
    if isinstance(values, LogUniform):
        return tune.loguniform(*values.loguniform)
    low, high = values.randint
    return tune.randint(low, high + 1)
