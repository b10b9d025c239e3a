"""The main job, from its start to its end."""

import time

from esper_ray.orchestration.config import TrainConfig
from esper_ray.orchestration.loggers import logged, require_loggers
from esper_ray.orchestration.plan import RunObserver, started_run
from esper_ray.orchestration.resume import described, find_resumption, read_start, start_from, take_up
from esper_ray.orchestration.run_folder import RunFolder
from esper_ray.orchestration.run_result import RunResult
from esper_ray.orchestration.training_run import TrainingRun


def train(config: TrainConfig, observer: RunObserver) -> RunResult:
    """Runs the main job, or goes on with one, and returns what it came to. Ctrl-C ends it early, with a checkpoint.

    Raises:
        EsperError: as `started_run` and `find_resumption`; before any actor starts, and nothing is written.
        EpisodeFailedError: an actor was lost too often over an episode; there is a checkpoint.
        RunFolderError: a row or the last checkpoint cannot be written, as on a full disk.
    """
    started = time.monotonic()
    resumption = find_resumption(config) if config.resume is not None else None
    config = resumption.config if resumption is not None else config
    require_loggers(config.logger)
    start = read_start(config) if resumption is None else None
    kept = resumption.iteration if resumption is not None else None
    with (
        started_run(config, resumed=resumption is not None) as (plan, algorithm, board),
        RunFolder(plan.out, described(plan, resumption), keep_iterations=kept) as folder,
        logged(observer, config.logger, plan) as watching,
    ):
        run = TrainingRun(plan, algorithm, folder, watching)
        if start is not None:
            start_from(run, plan, start)
        if resumption is not None and kept is not None:
            take_up(run, plan, resumption)
        watching.on_start(plan, board)
        try:
            if kept is None:
                run.play_wait_only()
            while not run.is_over:
                run.iterate()
        except KeyboardInterrupt:
            run.result.interrupted = True
        finally:
            board.close()
            run.result.interrupted |= not run.is_over
            run.finish(time.monotonic() - started)
    return run.result
