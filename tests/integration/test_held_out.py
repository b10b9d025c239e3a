"""Held-out evaluation and comparison: real Ray, a small trained policy, the same hosts for everybody."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driver import refused
from fakes import HeldOutEnv
from finished_runs import POOLED_EPOCHS, FinishedRuns
from shared_ray import start as start_ray

from esper_ray.cli.main import run
from esper_ray.episode import MorphogenesisEnv
from esper_ray.episode.rewards import growth_doublings
from esper_ray.episode.rollout import play_episode
from esper_ray.orchestration.config import LearnerSettings
from esper_ray.orchestration.fleet.actor_envs import ActorEnvs, ActorSettings
from esper_ray.orchestration.fleet.placement import Placement
from esper_ray.orchestration.fleet.tickets import development_seeds, held_out_seeds
from esper_ray.orchestration.learner.episode_ppo import EpisodePPO
from esper_ray.orchestration.learner.learner_config import Learning, build_config
from esper_ray.orchestration.run import checkpoint as checkpoints
from esper_ray.orchestration.run.checkpoint import held_out, read_manifest
from esper_ray.policies import LearnedPolicy, SchedulePolicy
from esper_ray.policies.manifest import write_manifest

pytestmark = pytest.mark.usefixtures("session_ray")

OTHER = [
    *(
        "--runners",
        "0",
        "--episodes-per-iteration",
        "4",
        "--max-epochs",
        str(POOLED_EPOCHS),
        "--wait-only-episodes",
        "0",
    ),
    *(
        "--reward",
        "paired",
        "--set",
        "data.train_samples=64",
        "data.validation_samples=50",
        "decisions.min_cull_age=11",
    ),
]
ROUNDS = ["--search-rounds", "1,2", "--runners", "1"]


@pytest.fixture(scope="module")
def trained(finished_runs: FinishedRuns) -> Path:
    """The checkpoint of a short run over a host pool, with evaluations on the way."""
    return finished_runs.folder("pooled") / "checkpoints" / "iteration_000002"


@pytest.fixture
def checkpoint(trained: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may damage."""
    copy = tmp_path / "checkpoints" / trained.name
    shutil.copytree(trained, copy)
    return copy


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]


# --- evaluate -----------------------------------------------------------------------------------------------------


def test_an_evaluation_is_the_saved_policy_on_held_out_hosts_with_test_accuracy_and_timelines(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "held_out"
    assert (
        run(["evaluate", str(trained), "--episodes", "4", "--runners", "2", "--out", str(out), "--timelines", "2"]) == 0
    )
    printed = capsys.readouterr().out
    assert "4 held-out hosts, sampled, after 2 iterations: kept test accuracy" in printed
    played = rows(out)
    assert {row["episode_seed"] for row in played} == set(held_out_seeds(4))
    assert sum(line.startswith("  ...") and len(line.split()[0]) == POOLED_EPOCHS for line in printed.splitlines()) == 2

    (file,) = out.glob("evaluation-sampled-*.json")
    found = json.loads(file.read_text())
    assert found["means"]["kept_test_accuracy"] == pytest.approx(np.mean([r["kept_test_accuracy"] for r in played]))
    task, policy = read_manifest(trained).task_spec(), LearnedPolicy.from_checkpoint(trained)
    env = MorphogenesisEnv(task)
    for row in played:
        record = play_episode(env, policy, row["episode_seed"])
        record.kept_test_accuracy = env.measure_test()
        assert [epoch.decision for epoch in record.epochs] == row["per_epoch"]["decision"]
        assert record.kept_test_accuracy == pytest.approx(row["kept_test_accuracy"], rel=1e-6)
        doublings = growth_doublings(row["added_parameters"], row["host_parameters"])
        assert row["test_score"] == pytest.approx(row["kept_test_accuracy"] - doublings, rel=1e-6)


@pytest.mark.parametrize("way", ["sampled", "median"])
def test_it_scores_what_rllib_s_own_evaluation_of_the_same_weights_scores(
    trained: Path, tmp_path: Path, way: str
) -> None:
    out = tmp_path / "held_out"
    greedy = ["--greedy"] * (way == "median")
    assert run(["evaluate", str(trained), "--episodes", "4", "--runners", "1", "--out", str(out), *greedy]) == 0
    actor = ActorSettings(read_manifest(trained).task_spec())
    learning = Learning(LearnerSettings(), iterations=1, episodes_per_iteration=4, seed=0)
    config = build_config(actor, learning, Placement(1, 1, 0.0))
    config.environment(ActorEnvs.of(HeldOutEnv))
    config.evaluation(
        evaluation_interval=1,
        evaluation_num_env_runners=0,
        evaluation_duration=4,
        evaluation_duration_unit="episodes",
        evaluation_config={"explore": way == "sampled"},
    )
    algorithm = EpisodePPO(config=config)
    try:
        algorithm.warm_start(trained)
        algorithm.eval_env_runner.module.set_state(algorithm.policy_network.get_state())
        found = algorithm.evaluate()["env_runners"]
    finally:
        algorithm.stop()
    returns = [row["return"] for row in rows(out)]
    assert found["num_episodes"] == 4
    assert found["episode_return_mean"] == pytest.approx(np.mean(returns), rel=1e-5)
    assert found["episode_return_min"] == pytest.approx(min(returns), rel=1e-5)
    assert found["episode_return_max"] == pytest.approx(max(returns), rel=1e-5)


def test_evaluations_during_training_play_held_out_hosts_that_no_report_uses(trained: Path) -> None:
    metrics = [json.loads(line) for line in (trained.parent.parent / "metrics.jsonl").read_text().splitlines()]
    assert "evaluation" not in metrics[0]
    found = metrics[1]["evaluation"]
    assert found["episodes"] == 3
    seeds = development_seeds(3)
    assert not set(seeds) & {*held_out_seeds(100), *read_manifest(trained).training_seeds()}
    env = MorphogenesisEnv(read_manifest(trained).task_spec())
    for way in ("sampled", "median"):
        policy = LearnedPolicy.from_checkpoint(trained, way)
        records = [play_episode(env, policy, seed) for seed in seeds]
        expected = np.mean([record.kept_val_accuracy for record in records])
        assert found[way]["kept_val_accuracy"] == pytest.approx(expected, rel=1e-6)
        assert found[way]["score"] == pytest.approx(np.mean([record.val_score for record in records]), rel=1e-6)


# --- compare ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    start_ray()
    out = tmp_path_factory.mktemp("compared") / "held_out"
    assert run(["compare", str(trained), "--episodes", "4", "--out", str(out), *ROUNDS]) == 0
    return out


def test_every_policy_plays_the_same_held_out_hosts_and_the_search_only_training_hosts(
    trained: Path, compared: Path
) -> None:
    held, training = set(held_out_seeds(4)), set(read_manifest(trained).search_seeds(2))
    seeds: dict[str, list[int]] = {}
    for row in rows(compared):
        assert (row["kept_test_accuracy"] is None) == row["policy"].startswith("search")
        seeds.setdefault(row["policy"], []).append(row["episode_seed"])
    searched = [name for name in seeds if name.startswith("search")]
    assert len(searched) > 20
    assert set().union(*(seeds.pop(name) for name in searched)) <= training
    assert training <= set(read_manifest(trained).training_seeds())
    assert not held & set(read_manifest(trained).training_seeds())
    digest = read_manifest(trained).digest
    for name in ("wait", "random", "heuristic", f"sampled {digest}", f"median {digest}"):
        assert sorted(seeds[name]) == sorted(held)
    assert all(set(of_policy) <= held for of_policy in seeds.values())


def test_differences_are_paired_by_host_and_have_bootstrap_intervals(trained: Path, compared: Path) -> None:
    found = json.loads((compared / "comparison.json").read_text())
    assert list(found["controls"]) == ["wait", "random", "heuristic", "schedule", "static-final"]
    by_policy: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows(compared):
        by_policy.setdefault(row["policy"], {})[row["episode_seed"]] = row
    digest = read_manifest(trained).digest
    for way, section in (("sampled", lambda c: c), ("median", lambda c: c["median"])):
        for control in ("wait", "random", "heuristic"):
            for measure, part in (("test_score", "difference"), ("kept_test_accuracy", "kept_test_accuracy")):
                ours = [by_policy[f"{way} {digest}"][seed][measure] for seed in found["seeds"]]
                theirs = [by_policy[control][seed][measure] for seed in found["seeds"]]
                entry = section(found["controls"][control])[part]
                entry = entry if part == "difference" else entry["difference"]
                assert entry["mean"] == pytest.approx(np.mean(np.subtract(ours, theirs)), abs=1e-4)
                assert entry["ci95"] is None, "4 hosts are too few for an interval"
    own = found["checkpoints"][str(trained)]
    assert own["controls"] == found["controls"]
    assert (own["seed"], own["iteration"], own["digest"]) == (0, 2, digest)
    assert found["verdict"].startswith("4 held-out hosts are too few")
    spent = {row["policy"]: row["host_epochs_spent"] for row in found["policies"]}
    metrics = [json.loads(line) for line in (trained.parent.parent / "metrics.jsonl").read_text().splitlines()]
    assert spent["sampled"] == metrics[-1]["host_epochs"] < 2 * 6 * POOLED_EPOCHS
    assert spent["schedule"] == found["schedule"]["episodes"] * POOLED_EPOCHS
    assert spent["wait"] == 0


def test_static_final_trains_from_scratch_what_the_policy_kept(trained: Path, compared: Path) -> None:
    by_policy: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows(compared):
        by_policy.setdefault(row["policy"], {})[row["episode_seed"]] = row
    digest = read_manifest(trained).digest
    learned = [item for way in ("sampled", "median") for item in by_policy[f"{way} {digest}"].items()]
    grown = [(seed, row) for seed, row in learned if row["kept_blueprint"]]
    assert grown, "choose another seed for the run: nothing was kept"
    for seed, row in grown:
        static = by_policy[f"static: {row['kept_blueprint']}"][seed]
        assert set(static["stages"]) == {"FOSSILIZED"}
        assert static["added_parameters"] == row["added_parameters"]
        assert set(static["per_epoch"]["decision"]) == {"WAIT"}


def test_a_comparison_that_was_cut_off_goes_on_and_comes_to_the_same(
    trained: Path, compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "held_out"
    shutil.copytree(compared, out)
    whole = (out / "episodes.jsonl").read_text()
    (out / "episodes.jsonl").write_text(whole[: len(whole) // 2])  # in the middle of a line
    (out / "comparison.json").unlink()
    kept = set((out / "episodes.jsonl").read_text().splitlines()[:-1])
    assert run(["compare", str(trained), "--episodes", "4", "--out", str(out), *ROUNDS, "--runners", "2"]) == 0
    again, before = (json.loads((folder / "comparison.json").read_text()) for folder in (out, compared))
    of_this_call = {"seconds": 0, "run": {}}
    assert again | of_this_call == before | of_this_call
    assert kept <= set((out / "episodes.jsonl").read_text().splitlines())
    assert len(rows(out)) == len(rows(compared))
    printed = capsys.readouterr().out
    assert before["verdict"] in printed.replace("\n", " ")

    lines = (out / "episodes.jsonl").read_text()
    assert run(["compare", str(trained), "--episodes", "4", "--out", str(out), *ROUNDS]) == 0
    assert (out / "episodes.jsonl").read_text() == lines


def test_checkpoints_of_other_training_seeds_are_reported_each_and_together(
    trained: Path, finished_runs: FinishedRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    assert run(["train", "--iterations", "1", "--seed", "7", "--out", str(other), *OTHER]) == 0
    second = other / "checkpoints" / "iteration_000001"
    out = tmp_path / "held_out"
    controls = ["--controls", "wait", "--episodes", "3", "--runners", "1", "--out", str(out)]
    assert run(["compare", str(trained), str(second), *controls]) == 0
    found = json.loads((out / "comparison-of-2.json").read_text())
    each = [found["checkpoints"][str(path)]["controls"]["wait"]["difference"]["mean"] for path in (trained, second)]
    assert found["controls"]["wait"]["difference"]["mean"] == pytest.approx(np.mean(each), abs=1e-4)
    assert "(seed 7)" in capsys.readouterr().out.replace("\n", " ").replace("│", "").replace("  ", " ")

    varied = finished_runs.copy("varied", tmp_path / "varied")
    third = varied / "checkpoints" / "iteration_000001"
    assert "differ in max_epochs, variety: compare them one by one" in refused(capsys, "compare", trained, third)
    again = tmp_path / "again" / trained.name
    shutil.copytree(trained, again)
    assert "have the same training seed 0" in refused(capsys, "compare", trained, again)
    assert run(["compare", str(third), "--controls", "wait", "--episodes", "4", "--runners", "1"]) == 0
    assert "what the learned policy, sampled, does on which hosts" in capsys.readouterr().out.replace("\n", " ")
    found = json.loads((varied / "held_out" / third.name / "comparison.json").read_text())
    assert found["checkpoints"][str(third)]["median_by_host"] == found["median_by_host"]
    for by_host in (found["by_host"], found["median_by_host"]):
        kinds = [row for row in by_host if "blocks" in row["hosts"]]
        thirds = [row for row in by_host if "training data" in row["hosts"]]
        for groups in (kinds, thirds):
            assert sum(row["count"] for row in groups) == 4
            assert all(sum(row["kept"].values()) == pytest.approx(1) for row in groups)


# --- bad input ----------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_something_else_is_refused_with_what_differs(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "trained on task digits, not on --task pydoc" in refused(capsys, "evaluate", checkpoint, "--task", "pydoc")
    assert "no such folder" in refused(capsys, "evaluate", tmp_path / "nowhere")
    assert "no checkpoint of this version" in refused(capsys, "evaluate", tmp_path)

    manifest = read_manifest(checkpoint)
    rewrite_manifest(checkpoint, manifest.model_copy(update={"versions": {**manifest.versions, "esper_ray": "0.0.1"}}))
    assert "was written with esper_ray 0.0.1, this is" in refused(capsys, "compare", checkpoint)
    rewrite_manifest(checkpoint, manifest.model_copy(update={"actions": (*manifest.actions, "GERMINATE_WINGS")}))
    assert "actions differ from the present ones: it has GERMINATE_WINGS" in refused(capsys, "evaluate", checkpoint)
    rewrite_manifest(checkpoint, manifest.model_copy(update={"observation": manifest.observation[1:]}))
    assert "observation differ from the present ones: here there is epoch" in refused(capsys, "evaluate", checkpoint)


def rewrite_manifest(checkpoint: Path, manifest: checkpoints.CheckpointManifest) -> None:
    (checkpoint / "esper_ray.json").unlink()
    write_manifest(checkpoint, manifest)


def test_a_damaged_checkpoint_is_refused(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (checkpoint / "esper_ray.json").read_text()
    weights = checkpoint / "policy.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-7] + b"garbage")
    assert "is not as it was written; take another one" in refused(capsys, "evaluate", checkpoint)
    weights.unlink()
    assert f"{weights.name} cannot be read: No such file" in refused(capsys, "evaluate", checkpoint)
    (checkpoint / "esper_ray.json").write_text("{")
    assert "is damaged: esper_ray.json" in refused(capsys, "evaluate", checkpoint)
    manifest = checkpoint / "esper_ray.json"
    for content in ("[]", '{"versions": [1]}', json.dumps({"versions": checkpoints.present_versions()})):
        manifest.write_text(content)
        assert "is damaged: esper_ray.json" in refused(capsys, "evaluate", checkpoint)
    manifest.write_text(whole.replace('"seed": 0', '"seed": 5'))
    assert "esper_ray.json is not as it was written" in refused(capsys, "evaluate", checkpoint)


def test_other_bad_input_is_one_line(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown control 'wat': did you mean 'wait'" in refused(capsys, "compare", checkpoint, "--controls", "wat")
    assert "--controls names none" in refused(capsys, "compare", checkpoint, "--controls", ",")
    assert "rising whole numbers" in refused(capsys, "compare", checkpoint, "--search-rounds", "4,2")
    assert "--episodes" in refused(capsys, "evaluate", checkpoint, "--episodes", "0")
    assert "Checkpoint folder, RUN/checkpoints/iteration_N. (required)" in refused(capsys, "evaluate")
    assert "compare expects at least one checkpoint folder" in refused(capsys, "compare")
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "holds other files" in refused(capsys, "evaluate", checkpoint, "--out", tmp_path)
    assert "is not a folder" in refused(capsys, "evaluate", checkpoint, "--out", tmp_path / "thesis.tex")
    out = tmp_path / "held_out"
    out.mkdir()
    (out / "settings.json").write_text('{"task": {}, "rent": 1.0}')
    told = refused(capsys, "evaluate", checkpoint, "--out", out)
    assert "holds episodes of another" in told
    assert "code, data, device, files" in told
    assert " more; name another folder" in told
    (out / "settings.json").write_text("[]")
    assert "holds no settings" in refused(capsys, "evaluate", checkpoint, "--out", out)
    fresh = tmp_path / "fresh"
    assert "runners do not fit" in refused(capsys, "evaluate", checkpoint, "--runners", "400", "--out", fresh)
    assert not fresh.exists()


def test_held_out_hosts_that_training_used_are_an_error_in_the_program(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(trained)
    assert held_out(manifest, 100) == held_out_seeds(100)
    monkeypatch.setattr(checkpoints, "held_out_seeds", lambda count: manifest.training_seeds()[:1])
    with pytest.raises(AssertionError, match="must not occur in training"):
        held_out(manifest, 1)


def test_the_best_schedule_can_be_followed_without_ray(compared: Path, trained: Path) -> None:
    """What the search reports is what a schedule policy gets on a training host."""
    found = json.loads((compared / "comparison.json").read_text())["schedule"]
    env = MorphogenesisEnv(read_manifest(trained).task_spec())
    searched = [row for row in rows(compared) if row["policy"].startswith("search: norm germinated after epoch 3")]
    (name, *_) = {row["policy"] for row in searched}
    fossilize_at = int(name.split("fossilized from ")[1].split()[0])
    policy = SchedulePolicy(env.action_table, "norm", 3, fossilize_at)
    row = next(row for row in searched if row["policy"] == name)
    assert play_episode(env, policy, row["episode_seed"]).val_score == pytest.approx(row["val_score"], rel=1e-6)
    scores: dict[str, list[float]] = {}
    for row in rows(compared):
        if row["policy"].startswith("search"):
            scores.setdefault(row["policy"], []).append(row["val_score"])
    decided = {name: np.mean(of_name) for name, of_name in scores.items() if len(of_name) == found["hosts"]}
    assert found["score"] == pytest.approx(max(decided.values()), rel=1e-6)
