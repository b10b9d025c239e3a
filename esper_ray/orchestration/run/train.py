"""Training runs, from start to end."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from esper_ray.orchestration.config import TrainConfig
from esper_ray.orchestration.fleet.interrupts import deferred_interrupts
from esper_ray.orchestration.fleet.progress import BoardReader
from esper_ray.orchestration.run.loggers import logged, require_loggers
from esper_ray.orchestration.run.plan import RunObserver, started_run
from esper_ray.orchestration.run.resume import described, locked_resumption, read_start, resume_run, warm_start
from esper_ray.orchestration.run.run_folder import RunFolder
from esper_ray.orchestration.run.run_result import RunResult
from esper_ray.orchestration.run.training_run import TrainingRun


def train(config: TrainConfig, observer: RunObserver) -> RunResult:
    """Starts or resumes a training run and returns its result. Ctrl-C ends it early, with a checkpoint.

    Raises:
        EsperError: as `started_training`.
        EpisodeFailedError: an actor was lost too often over an episode; there is a checkpoint.
        RunFolderError: a row or the last checkpoint cannot be written, as on a full disk.
    """
    started = time.monotonic()
    with started_training(config, observer) as (run, board):
        try:
            run.play_wait_only()
            while not run.is_over:
                run.iterate()
        except KeyboardInterrupt:
            run.result.interrupted = True
        finally:
            with deferred_interrupts():
                board.close()
                run.result.interrupted |= not run.is_over
                run.finish(time.monotonic() - started)
    return run.result


@contextmanager
def started_training(config: TrainConfig, observer: RunObserver) -> Iterator[tuple[TrainingRun, BoardReader]]:
    """Starts or resumes a training run with its actors and its folder, and closes both afterwards.

    Raises:
        EsperError: as `started_run` and `locked_resumption`; before any actor starts, and nothing is written.
        CheckpointError: the checkpoint that it was to begin with is of other actions, observations or another network.
    """
    with ExitStack() as stack:
        resumption = stack.enter_context(locked_resumption(config)) if config.resume is not None else None
        config = resumption.config if resumption is not None else config
        require_loggers(config.logger)
        goes_on = resumption is not None and resumption.checkpoint is not None
        start = read_start(config) if not goes_on else None
        kept = resumption.iteration if resumption is not None else None
        plan, algorithm, board = stack.enter_context(started_run(config, resumed=resumption is not None))
        if start is not None:  # before anything is written: it may be refused
            warm_start(algorithm, plan, start)
        if resumption is not None and goes_on:
            resume_run(algorithm, plan, resumption)
        row = described(plan, resumption)
        folder = stack.enter_context(RunFolder(plan.out, row, keep_iterations=kept))
        watching = stack.enter_context(logged(observer, config.logger, plan))
        run = TrainingRun(plan, algorithm, folder, watching)
        if resumption is not None and kept is not None:
            run.resume_from(resumption.tally)
        watching.on_start(plan, board)
        yield run, board
