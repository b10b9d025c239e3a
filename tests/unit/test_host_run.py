"""The work that a host's epochs consist of."""

from collections.abc import Iterator

from esper_ray.episode.host_run import HostRun
from esper_ray.tasks import TaskSpec, load_task_data
from esper_ray.training import TrainingWork
from esper_ray.training.work import do


def training_of(run: HostRun) -> Iterator[TrainingWork]:
    """Trains a host to the end of its episode and yields the training of each epoch."""
    while not run.is_over:
        steps = run.epoch_steps()
        work = next(steps)
        try:
            while True:
                if isinstance(work, TrainingWork):
                    yield work
                work = steps.send(do(work))
        except StopIteration:
            pass


def test_every_epoch_of_every_host_has_random_numbers_and_an_order_of_samples_of_its_own(fast_task: TaskSpec) -> None:
    runs = [HostRun(fast_task, load_task_data(fast_task), "cpu", episode_seed) for episode_seed in (0, 1)]
    seeds = [seed for run in runs for work in training_of(run) for seed in (work.order_seed, work.generator_seed)]
    assert len(set(seeds)) == len(seeds) == 2 * 2 * fast_task.max_epochs
