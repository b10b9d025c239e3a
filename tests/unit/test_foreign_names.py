"""What users put beside our files, such as copies and backups, is let be."""

import json
import shutil
from pathlib import Path

import pytest
from writers import write_stories_parquet

from esper_ray.data.formats import find_shards
from esper_ray.orchestration.run.kept_hosts import KeptHosts, kept_episodes
from esper_ray.orchestration.run.run_folder import RunFolder, iteration_of, read_config
from esper_ray.orchestration.tuning.search_folder import trial_folders
from esper_ray.report.reading import load_run, load_search, version_of

FOREIGN = (" (copy)", "_backup", ".bak", "~", " 2")


def test_copies_of_checkpoints_neither_count_nor_go(tmp_path: Path) -> None:
    run = tmp_path / "run"
    foreign = [f"iteration_000002{ending}" for ending in FOREIGN] + ["iteration_2", "iteration_0000002", "notes"]
    with RunFolder(run, {}) as folder:
        for iteration in range(1, 4):
            folder.save_checkpoint(iteration, lambda path: (path / "whole").touch(), keep_every=100)
            for name in foreign:
                (run / "checkpoints" / name).mkdir(exist_ok=True)
        assert [iteration_of(path) for path in folder.checkpoints()] == [2, 3]
    with RunFolder(run, {}, keep_iterations=2) as folder:
        assert [iteration_of(path) for path in folder.checkpoints()] == [2]
        folder.save_checkpoint(1_000_000, lambda path: (path / "whole").touch())
        assert [iteration_of(path) for path in folder.checkpoints()] == [2, 1_000_000]
    assert set(foreign) <= {path.name for path in (run / "checkpoints").iterdir()}


def test_a_run_goes_on_beside_foreign_files_of_any_name(tmp_path: Path) -> None:
    with RunFolder(tmp_path, {}) as folder:
        folder.add_iteration({"iteration": 1})
    (tmp_path / "mine.writing").mkdir()
    (tmp_path / "config.writing").touch()
    with RunFolder(tmp_path, {}, keep_iterations=1):
        pass
    assert (tmp_path / "mine.writing").is_dir()
    assert not (tmp_path / "config.writing").exists(), "it was half written by a run that was killed"


def test_copies_of_kept_hosts_neither_count_nor_go(tmp_path: Path) -> None:
    names = ["episode_000001.safetensors", "episode_1234567.safetensors"]
    foreign = [f"episode_000002{ending}.safetensors" for ending in FOREIGN] + ["episode_7.safetensors"]
    for name in (*names, *foreign):
        (tmp_path / name).touch()
    assert kept_episodes(tmp_path) == [1, 1_234_567]
    KeptHosts(tmp_path, 1).resume_from([50.0, 60.0])
    assert {path.name for path in tmp_path.iterdir()} == {names[0], *foreign}


def test_copies_of_trials_are_not_reported(tmp_path: Path) -> None:
    (tmp_path / "experiment.json").write_text("{}")
    for name in ("00000_seed0", *(f"00000_seed0{ending}" for ending in FOREIGN), "old"):
        trial = tmp_path / "trials" / name
        trial.mkdir(parents=True)
        (trial / "config.json").write_text(json.dumps({"command": {"name": "train"}, "device": "cpu"}))
    assert [path.name for path in trial_folders(tmp_path)] == ["00000_seed0"]
    search = load_search(tmp_path)
    assert (list(search.trials), search.damaged) == (["00000_seed0"], {})


def test_copies_of_comparisons_are_not_reported_even_if_they_are_damaged(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"command": {"name": "train"}, "device": "cpu"}))
    assert read_config(tmp_path)
    held_out = tmp_path / "held_out" / "iteration_000002"
    held_out.mkdir(parents=True)
    for name in ("comparison.json", "comparison-of-3.json"):
        (held_out / name).write_text(json.dumps({"controls": {}}))
    before = version_of(tmp_path)[0]
    for ending in FOREIGN:
        (held_out / f"comparison{ending}.json").write_text("{")
    assert set(load_run(tmp_path).comparisons) == {f"iteration_000002/comparison{of}.json" for of in ("", "-of-3")}
    assert version_of(tmp_path)[0] == before


@pytest.mark.parametrize("ending", FOREIGN)
def test_copies_of_parquet_files_are_no_data(ending: str, tmp_path: Path) -> None:
    write_stories_parquet(tmp_path)
    expected = find_shards(tmp_path, ("train", "validation"))
    for path in expected:
        shutil.copy(path, path.with_stem(f"{path.stem}{ending}"))
    assert find_shards(tmp_path, ("train", "validation")) == expected
