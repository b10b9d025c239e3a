"""The main job, from its start to its end."""

import time

from esper_ray.orchestration.config import TrainConfig
from esper_ray.orchestration.loggers import logged, require_loggers
from esper_ray.orchestration.plan import RunObserver, started_run
from esper_ray.orchestration.run_folder import RunFolder
from esper_ray.orchestration.run_result import RunResult
from esper_ray.orchestration.training_run import TrainingRun


def train(config: TrainConfig, observer: RunObserver) -> RunResult:
    """Runs the main job and returns what it came to. Ctrl-C ends it early, with a checkpoint.

    Raises:
        EsperError: as `started_run`; before any actor starts, and nothing is written.
        EpisodeFailedError: an episode raised, or its actor was lost too often; there is a checkpoint.
    """
    started = time.monotonic()
    require_loggers(config.logger)
    with (
        started_run(config) as (plan, algorithm, board),
        RunFolder(plan.out, plan.as_dict()) as folder,
        logged(observer, config.logger, plan) as watching,
    ):
        run = TrainingRun(plan, algorithm, folder, watching)
        watching.on_start(plan, board)
        try:
            run.play_wait_only()
            while not run.is_over:
                run.iterate()
        except KeyboardInterrupt:
            run.result.interrupted = True
        finally:
            board.close()
            run.finish(time.monotonic() - started)
    return run.result
