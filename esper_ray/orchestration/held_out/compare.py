"""Learned policies against simple controls, all on the same held-out hosts."""

import time
from collections.abc import Sequence

from esper_ray.episode import ActionTable, Policy
from esper_ray.errors import CheckpointError
from esper_ray.orchestration.config import WAYS, CompareConfig
from esper_ray.orchestration.held_out.comparison import Comparison, Played
from esper_ray.orchestration.held_out.episode_store import EpisodeStore, Outcome, play_missing, require_store
from esper_ray.orchestration.held_out.evaluate import (
    common_task,
    held_out_folder,
    opened,
    policy_name,
    store_settings,
    with_plugins,
)
from esper_ray.orchestration.held_out.schedule_search import FoundSchedule, search_schedule
from esper_ray.orchestration.learner.algorithm import EpisodeAlgorithm
from esper_ray.orchestration.run.checkpoint import CheckpointManifest, held_out
from esper_ray.orchestration.run.claims import claimed
from esper_ray.orchestration.run.plan import RunObserver, RunPlan, started_actors
from esper_ray.orchestration.run.run_folder import write_json
from esper_ray.policies import HeuristicPolicy, LearnedPolicy, RandomPolicy, WaitPolicy

_FILE = "comparison.json"


def compare(config: CompareConfig, observer: RunObserver) -> Comparison:
    """Plays the missing episodes and compares the policies. An interrupted comparison continues on the next call.

    Raises:
        CheckpointError: a checkpoint is damaged, or of another task, action space or version than the first.
        ConfigurationError: a control is unknown.
        EsperError: as `started_run`.
    """
    started = time.monotonic()
    wanted, rounds = config.control_names(), config.search_host_counts()
    manifests = {str(path): opened(path, config)[0] for path in config.checkpoints}
    first = manifests[str(config.checkpoints[0])]
    _require_one_setting(manifests)
    task, out = first.task_spec(), held_out_folder(config.checkpoints[0], config)
    seeds = _held_out_of_all(manifests, config.episodes)
    require_store(out)
    with claimed(out), started_actors(with_plugins(config, first), task, out) as (plan, algorithm, board):
        for checkpoint in manifests.values():
            checkpoint.require_spaces(plan.action_names, plan.observation_names)
        with EpisodeStore(out, store_settings(first, plan, config.data_dir)) as store:
            observer.on_start(plan, board)
            table = _Table(store, algorithm, plan, seeds, observer)
            controls = {name: Played(table.play(name, policy)) for name, policy in _scripted(plan, wanted).items()}
            schedule = None
            if "schedule" in wanted:
                schedule = _search(table, first.search_seeds(rounds[-1]), rounds)
                outcomes = table.play(f"schedule: {schedule.schedule}", schedule.schedule.policy(table.actions))
                controls["schedule"] = Played(outcomes, schedule.episodes * task.max_epochs)
            learned, static = _play_learned(table, manifests, "static-final" in wanted)
            board.close()
            file = out / _FILE if len(manifests) == 1 else out / f"comparison-of-{len(manifests)}.json"
            result = Comparison(plan, seeds, manifests, learned, controls, static, schedule, file)
            result.seconds, result.losses = time.monotonic() - started, algorithm.losses
            write_json(result.file, result.as_dict())
    return result


def _play_learned(
    table: "_Table", manifests: dict[str, CheckpointManifest], with_static: bool
) -> tuple[dict[tuple[str, str], Played], dict[tuple[str, str], Played]]:
    """Plays every checkpoint, sampled and deterministic, and static hosts with the seeds that each of them kept."""
    learned: dict[tuple[str, str], Played] = {}
    static: dict[tuple[str, str], Played] = {}
    for name, checkpoint in manifests.items():
        for way in WAYS:
            policy = LearnedPolicy.from_checkpoint(name, way)
            outcomes = table.play(policy_name(checkpoint, way), policy)
            learned[name, way] = Played(outcomes, checkpoint.host_epochs)
            if with_static:
                static[name, way] = Played(table.play_static(outcomes), checkpoint.host_epochs)
    return learned, static


class _Table:
    """Plays policies on the held-out hosts, as far as the store lacks them."""

    def __init__(
        self,
        store: EpisodeStore,
        algorithm: EpisodeAlgorithm,
        plan: RunPlan,
        seeds: Sequence[int],
        observer: RunObserver,
    ) -> None:
        self.store = store
        self.algorithm = algorithm
        self.plan = plan
        self.actions = ActionTable.from_names(plan.action_names)
        self.observer = observer
        self.seeds = seeds

    def play(self, name: str, policy: Policy) -> list[Outcome]:
        return play_missing(
            self.store,
            self.algorithm,
            name,
            policy,
            self.seeds,
            on_episode=lambda done, total: self.observer.on_scripted(name, done, total),
        )

    def play_static(self, grown: Sequence[Outcome]) -> list[Outcome]:
        """Plays each host with the seed that another episode kept on it, trained from the first epoch on."""
        found: dict[int, Outcome] = {}
        blueprints = [outcome.kept_blueprint for outcome in grown]
        for blueprint in sorted({str(name) for name in blueprints}):
            chosen = [s for s, b in zip(self.seeds, blueprints, strict=True) if str(b) == blueprint]
            start = None if blueprint == str(None) else blueprint
            name = "wait" if start is None else f"static: {blueprint}"
            outcomes = play_missing(
                self.store,
                self.algorithm,
                name,
                WaitPolicy(),
                chosen,
                grown=[start] * len(chosen),
                on_episode=lambda done, total, name=name: self.observer.on_scripted(name, done, total),  # type: ignore[misc]
            )
            found |= dict(zip(chosen, outcomes, strict=True))
        return [found[seed] for seed in self.seeds]


def _scripted(plan: RunPlan, wanted: Sequence[str]) -> dict[str, Policy]:
    actions = ActionTable.from_names(plan.action_names)
    policies: dict[str, Policy] = {
        "wait": WaitPolicy(),
        "random": RandomPolicy(),
        "heuristic": HeuristicPolicy.of(plan.task, actions),
    }
    return {name: policy for name, policy in policies.items() if name in wanted}


def _search(table: _Table, seeds: Sequence[int], rounds: Sequence[int]) -> FoundSchedule:
    assert not set(seeds) & set(table.seeds), "the search must not see a held-out host"
    return search_schedule(
        table.store,
        table.algorithm,
        table.plan.task,
        table.actions,
        seeds,
        rounds,
        lambda done, total: table.observer.on_scripted("schedule search", done, total),
    )


def _held_out_of_all(manifests: dict[str, CheckpointManifest], count: int) -> list[int]:
    (seeds, *_) = [held_out(checkpoint, count) for checkpoint in manifests.values()]
    return seeds


def _require_one_setting(manifests: dict[str, CheckpointManifest]) -> None:
    """Refuses checkpoints that are not of one task with other training seeds.

    Raises:
        CheckpointError: it names the difference, or the seed that they share.
    """
    (first_name, first), *others = manifests.items()
    names = {first.seed: first_name}
    for name, other in others:
        theirs, ours = common_task(other), common_task(first)
        differing = [key for key in ours if ours[key] != theirs.get(key)]
        if differing:
            raise CheckpointError(f"{name} and {first_name} differ in {', '.join(differing)}: compare them one by one")
        if other.seed in names:
            raise CheckpointError(
                f"{name} and {names[other.seed]} have the same training seed {other.seed}: compare them one by one"
            )
        names[other.seed] = name
