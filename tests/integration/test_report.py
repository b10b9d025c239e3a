"""The report of a run and of a search: what it shows in a real browser, and `watch`, which keeps it up to date."""

import http.client
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright
from report_browser import FAINT, chromium, draw_all, marks, opened

from esper_ray.cli.main import _parse, run
from esper_ray.errors import EsperError, RunFolderError
from esper_ray.lifecycle import SeedStage
from esper_ray.orchestration.config import HeuristicConfig, TrainConfig
from esper_ray.orchestration.fleet.cluster import local_ray
from esper_ray.report import ReportServer, embedded, palette, render, write_plots, write_report
from esper_ray.report.aggregate import Bins, action_shares, blueprint_scores, gradient_map, learning_curve
from esper_ray.report.shell_command import in_lines, shell_command

SMALL = [
    *("--set", "data.train_samples=64", "data.validation_samples=50", "host.base_channels=2"),
    *("--max-epochs", "14", "--runners", "2"),
]
TRAIN = ["train", *SMALL, "--iterations", "2", "--episodes-per-iteration", "4", "--wait-only-episodes", "2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small training run and a run of the heuristic policy, played for real."""
    folder = tmp_path_factory.mktemp("runs")
    with local_ray(num_cpus=2):
        assert run([*TRAIN, "--ppo.minibatch-size", "32", "--evaluate-every", "2", "--evaluation-episodes", "2",
                    "--out", str(folder / "trained")]) == 0  # fmt: skip
        assert run(["heuristic", *SMALL, "--episodes", "4", "--out", str(folder / "heuristic")]) == 0
    return folder


@pytest.fixture
def trained(runs: Path, tmp_path: Path) -> Path:
    """A copy of the training run, with a comparison with the controls."""
    folder = tmp_path / "trained"
    shutil.copytree(runs / "trained", folder, ignore=shutil.ignore_patterns("checkpoints", "hosts"))
    (folder / "held_out").mkdir()
    (folder / "held_out" / "comparison.json").write_text(json.dumps(make_comparison()))
    return folder


@pytest.fixture
def search(runs: Path, tmp_path: Path) -> Path:
    """A search as `esper-ray tune` leaves it, of four copies of the training run."""
    folder = tmp_path / "tune-small"
    settings = []
    for rank, rate in enumerate((0.001, 0.003), start=1):
        trials = [f"trial_{rank}_seed{seed}" for seed in (0, 1)]
        for seed, name in enumerate(trials):
            shutil.copytree(
                runs / "trained", folder / "trials" / name, ignore=shutil.ignore_patterns("checkpoints", "hosts")
            )
            config = json.loads((folder / "trials" / name / "config.json").read_text())
            config["command"]["seed"], config["setting"] = seed, {"ppo.lr_start": rate}
            (folder / "trials" / name / "config.json").write_text(json.dumps(config))
        settings.append(
            {
                **{"rank": rank, "setting": {"ppo.lr_start": rate}, "mean": 50.0 - rank, "std": 1.5, "complete": True},
                **{"seeds": [0, 1], "values": [51.0 - rank, 49.0 - rank], "iterations": [2, 2], "trials": trials},
            }
        )
    space = {"ppo.lr_start": {"grid": [0.001, 0.003]}}
    described = {"train": {"task": "digits"}, "space": space, "seeds": [0, 1], "metric": "score", "mode": "max"}
    origin = {
        "esper_ray": "0.1.0",
        "python": "3.11",
        "versions": {"torch": "2"},
        "started": "2026-01-02T03:04:05+00:00",
    }
    command = {"name": "tune", "file": "tune_configs/quick.yaml", "max_concurrent": 2}
    (folder / "experiment.json").write_text(json.dumps({"command": command, "search": described, **origin}))
    ranking = {"metric": "score", "mode": "max", "settings": settings, "seconds": 100.0, "failed": 0}
    (folder / "ranking.json").write_text(json.dumps(ranking | {"interrupted": False}))
    (folder / "best.yaml").write_text("task: digits\nppo:\n  lr_start: 0.001\n")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    if path is None:
        pytest.skip("there is no Chromium on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def make_comparison() -> dict[str, Any]:
    def way(mean: float) -> dict[str, Any]:
        return {"difference": {"mean": mean, "ci95": [mean - 1, mean + 1]}, "verdict": "better"}

    host = {"hosts": "blocks 1", "count": 3, "kept": {"norm": 1.0}, "germinated_after": 3.0, "fossilized_after": None}
    means = {"score": 60.0, "kept_test_accuracy": 61.0, "kept_val_accuracy": 62.0, "added_parameters": 3.0}
    return {
        "verdict": "On 3 held-out hosts the learned policy is better than wait.",
        "controls": {"wait": way(5.0) | {"greedy": way(4.0)}, "random": way(2.0) | {"greedy": way(3.0)}},
        "by_host": [host | {"score": 50.0, "against": "wait", "difference": {"mean": 5.0, "ci95": [4.0, 6.0]}}],
        "policies": [means | {"policy": name, "fossilized_share": 0.5} for name in ("sampled", "wait")],
    }


def report_url(folder: Path) -> str:
    return write_report(folder).as_uri()


def add_episodes(folder: Path, rows: int) -> None:
    """Appends an iteration, as a run that goes on does."""
    episodes = [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]
    iterations = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    iteration = iterations[-1]["iteration"] + 1
    with (folder / "episodes.jsonl").open("a") as file:
        for i in range(rows):
            file.write(json.dumps({**episodes[i], "episode": len(episodes) + i + 1, "iteration": iteration}) + "\n")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({**iterations[-1], "iteration": iteration}) + "\n")


@pytest.mark.slow
class TestThePageOfARun:
    def test_every_chart_has_marks_and_neither_console_nor_network_hears_of_it(
        self, trained: Path, browser: Browser
    ) -> None:
        url = report_url(trained)
        with opened(browser, url) as (page, heard):
            found = marks(page)
            for name in ("learning", "episode-stages", "episode-accuracy", "strip", "actions", "waits", "rewards"):
                assert found[name] > 1, name
            assert {"health-kl", "health-entropy-share", "gradient-health", "comparison-0"} <= set(found)
            assert min(found.values()) > 0, found
            assert [heading.inner_text() for heading in page.query_selector_all("h2")][:3] == [
                *("Learning curve", "Learner health", "Episodes"),
            ]
            assert heard.messages == []
            assert {address for address in heard.requests if not address.startswith("data:")} == {url}

    def test_the_chosen_episode_changes_the_timeline(self, trained: Path, browser: Browser) -> None:
        episodes = [json.loads(line) for line in (trained / "episodes.jsonl").read_text().splitlines()]
        best = max(episodes, key=lambda row: (row["kept_val_accuracy"], -row["episode"]))
        with opened(browser, report_url(trained)) as (page, _):
            timeline = page.locator("#chart-episode-stages svg")
            seen = set()
            for row in episodes:
                page.fill("#number", str(row["episode"]))
                page.press("#number", "Enter")
                page.wait_for_function("(n) => esperReport.chosen() === n", arg=row["episode"])
                draw_all(page)
                page.wait_for_timeout(60)
                stages = [row["stages"][0]]
                for stage in row["stages"]:
                    stages += [stage] * (stage != stages[-1])
                assert page.locator("#chart-episode-stages .mark-rect path").count() >= len(stages)
                assert f"{row['kept_val_accuracy']:.1f} %" in page.inner_text("#episode-manifest")
                seen.add(timeline.inner_html())
            assert len(seen) > 1
            page.click("[data-preset=best]")
            assert page.evaluate("esperReport.chosen()") == best["episode"]
            page.click("[data-preset=first]")
            page.click("#next")
            assert page.evaluate("esperReport.chosen()") == 2
            page.fill("#number", "99")
            page.press("#number", "Enter")
            assert "There are episodes 1 to 8" in page.inner_text("#chooser-message")
            page.locator("#chart-strip .mark-rect path").first.click()
            assert page.evaluate("esperReport.chosen()") == 1

    def test_a_pointer_on_a_chart_shows_its_numbers(self, trained: Path, browser: Browser) -> None:
        with opened(browser, report_url(trained)) as (page, _):
            page.locator("#chart-learning").scroll_into_view_if_needed()
            box = page.locator("#chart-learning svg").bounding_box()
            assert box is not None
            page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
            page.wait_for_selector("#tooltip:not([hidden])")
            assert "10th percentile" in page.inner_text("#tooltip")

    @pytest.mark.parametrize("dark", [False, True])
    @pytest.mark.parametrize("width", [360, 1280])
    def test_every_text_is_legible_and_nothing_overflows(
        self, trained: Path, browser: Browser, dark: bool, width: int
    ) -> None:
        with opened(browser, report_url(trained), width, dark) as (page, _):
            faint = page.evaluate(FAINT)
            assert faint["seen"] > 200
            assert faint["found"] == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            widest = page.evaluate(
                "Math.max(...[...document.querySelectorAll('.chart svg')].map((e) => e.getBoundingClientRect().right))"
            )
            assert widest <= width

    def test_charts_take_the_theme_without_being_drawn_again(self, trained: Path, browser: Browser) -> None:
        with opened(browser, report_url(trained)) as (page, _):
            fill = "getComputedStyle(document.querySelector('#chart-learning svg text')).fill"
            light = page.evaluate(fill)
            page.emulate_media(color_scheme="dark")
            assert page.evaluate(fill) != light

    def test_a_run_of_the_heuristic_policy_has_a_page(self, runs: Path, tmp_path: Path, browser: Browser) -> None:
        shutil.copytree(runs / "heuristic", tmp_path / "heuristic")
        with opened(browser, report_url(tmp_path / "heuristic")) as (page, heard):
            assert heard.messages == []
            found = marks(page)
            assert found["learning"] == 4
            assert "health-kl" not in found
            assert "esper-ray heuristic" in page.inner_text("#command-text")


@pytest.mark.slow
class TestUnusualRuns:
    @pytest.mark.parametrize("files", [(), ("metrics.jsonl", "episodes.jsonl")])
    def test_a_run_that_has_just_begun_says_so(self, trained: Path, browser: Browser, files: tuple[str, ...]) -> None:
        for name in ("metrics.jsonl", "episodes.jsonl", "summary.json"):
            (trained / name).unlink()
        shutil.rmtree(trained / "held_out")
        for name in files:
            (trained / name).touch()
        with opened(browser, report_url(trained)) as (page, heard):
            assert "The run has just begun" in page.inner_text(".status-note")
            assert page.query_selector_all("[data-chart]") == []
            assert heard.messages == []

    def test_a_line_that_is_being_written_is_left_out(self, trained: Path) -> None:
        whole = render(trained)
        assert "No epoch was rolled back." in whole
        with (trained / "episodes.jsonl").open("a") as file:
            file.write('{"episode": 9, "kept_')
        assert render(trained) == whole

    def test_a_damaged_file_is_named_in_one_line(self, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name in ("episodes.jsonl", "metrics.jsonl", "summary.json", "config.json", "held_out/comparison.json"):
            kept = (trained / name).read_text()
            (trained / name).write_text('{"broken\n')
            assert run(["report", str(trained)]) == 2
            error = capsys.readouterr().err
            assert f"{trained / name} is damaged" in error
            assert error.count("\n") == 1
            (trained / name).write_text(kept)
        assert run(["report", str(trained)]) == 0

    def test_nothing_of_the_run_becomes_markup(self, trained: Path, browser: Browser) -> None:
        evil = "</script><b id=evil>&'"
        folder = trained.rename(trained.with_name("run<b id=evil>"))
        for name in ("config.json", "episodes.jsonl", "metrics.jsonl"):
            text = (folder / name).read_text()
            (folder / name).write_text(text.replace("CONV_HEAVY", evil).replace("conv_heavy", evil))
        config = json.loads((folder / "config.json").read_text())
        config["command"]["plugin"] = [evil]
        config["task"]["summary"] = config["task"]["name"] = config["device"] = evil
        (folder / "config.json").write_text(json.dumps(config))
        with opened(browser, report_url(folder)) as (page, heard):
            assert heard.messages == []
            assert page.locator("#evil").count() == 0
            assert page.inner_text("h1") == "run<b id=evil>"
            assert evil in page.inner_text("#command-text")
            assert min(marks(page).values()) > 0

    def test_more_episodes_than_fit_are_thinned_and_the_page_says_so(
        self, trained: Path, browser: Browser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(embedded, "MOST_EPISODES", 4)
        add_episodes(trained, 6)
        with opened(browser, report_url(trained)) as (page, _):
            assert "carries 4 of the 14 episodes" in page.inner_text("#episodes")
            page.fill("#number", "3")
            page.press("#number", "Enter")
            assert "Episode 3 is not in this page" in page.inner_text("#chooser-message")


@pytest.mark.slow
class TestASearch:
    def test_its_page_ranks_the_settings(self, search: Path, browser: Browser) -> None:
        with opened(browser, report_url(search)) as (page, heard):
            found = marks(page)
            assert set(found) == {"ranking", "curves", "parameter-0"}
            assert min(found.values()) >= 4
            assert heard.messages == []
            assert page.inner_text("#best-text").startswith("task: digits")
            assert f"esper-ray report {search}/trials/trial_1_seed0" in page.inner_text("#trials")
            assert page.inner_text("#command-text") == "esper-ray tune tune_configs/quick.yaml --max-concurrent 2"

    @pytest.mark.parametrize("dark", [False, True])
    def test_it_is_legible_on_a_phone(self, search: Path, browser: Browser, dark: bool) -> None:
        with opened(browser, report_url(search), 360, dark) as (page, _):
            assert page.evaluate(FAINT)["found"] == []
            assert page.evaluate("document.documentElement.scrollWidth") <= 360

    def test_while_it_goes_on_trials_are_ranked_as_they_stand(self, search: Path) -> None:
        (search / "ranking.json").unlink()
        (search / "trials" / "trial_2_seed1" / "metrics.jsonl").write_text("{\n")
        (search / "trials" / "just_started").mkdir()
        html = render(search)
        assert "how the trials stand now" in html
        assert "Trial trial_2_seed1 is left out" in html

    def test_pictures_are_written(self, search: Path) -> None:
        written = write_plots(search)
        assert [path.name for path in written] == ["ranking.png", "learning_curves.png"]
        for path in written:
            assert path.read_bytes().startswith(b"\x89PNG")
            assert path.stat().st_size > 10_000


@pytest.mark.slow
class TestWatching:
    def test_the_page_follows_the_run_and_keeps_place_and_episode(self, trained: Path, browser: Browser) -> None:
        (trained / "summary.json").unlink()
        with ReportServer(trained) as server, opened(browser, server.url) as (page, heard):
            assert "2 of 2 iterations" in page.inner_text(".status-note")
            page.evaluate("esperReport.choose(3)")
            page.evaluate("scrollTo(0, 900)")
            add_episodes(trained, 4)
            page.wait_for_function("document.body.dataset.updates === '1'", timeout=20_000)
            draw_all(page)
            assert "3 of 2 iterations" in page.inner_text(".status-note")
            assert page.evaluate("esperReport.chosen()") == 3
            assert page.evaluate("scrollY") == 900
            assert min(marks(page).values()) > 0
            (trained / "summary.json").write_text('{"complete": true, "seconds": 1.0}')
            page.wait_for_function("document.querySelector('#live').textContent.includes('has ended')", timeout=20_000)
            assert heard.messages == []
            assert all(address.startswith((server.url, "data:")) for address in heard.requests)

    def test_it_answers_no_other_path_and_no_other_host(self, trained: Path) -> None:
        def status(path: str, host: str | None = None) -> int:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
            connection.request("GET", path, headers={"Host": host} if host else {})
            return connection.getresponse().status

        with ReportServer(trained) as server:
            assert status("/") == status("/version") == status("/", f"localhost:{server.port}") == 200
            for path in ("/config.json", "/../config.json", "//etc/passwd", "/favicon.ico"):
                assert status(path) == 404
            for host in ("evil.example", f"evil.example:{server.port}", "127.0.0.1.evil.example", "localhost:x"):
                assert status("/", host) == status("/version", host) == 403

    def test_a_port_that_is_taken_is_an_error_in_one_line(
        self, trained: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with ReportServer(trained) as server:
            assert run(["watch", str(trained), "--port", str(server.port)]) == 2
        error = capsys.readouterr().err
        assert f"--port {server.port} cannot be used" in error
        assert error.count("\n") == 1

    def test_ctrl_c_ends_the_command_with_nothing_but_its_url(self, trained: Path) -> None:
        command = [sys.executable, "-m", "esper_ray.cli.main", "watch", str(trained)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert "at http://127.0.0.1:" in process.stdout.readline()
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (0, "")


@pytest.mark.slow
def test_the_recorded_command_makes_the_same_run_again(runs: Path) -> None:
    for name, model in (("trained", TrainConfig), ("heuristic", HeuristicConfig)):
        recorded = json.loads((runs / name / "config.json").read_text())["command"]
        words = shlex.split(in_lines(shell_command(recorded), 10).replace("\\\n", " "))
        again = _parse(words[1:])
        assert isinstance(again, model)
        assert {"name": model.command, **again.model_dump(mode="json")} == recorded


def test_a_command_says_only_what_differs_from_the_defaults() -> None:
    config = TrainConfig(task="pydoc", host_variety=True, set=("a=[1, 2]", "b=2"), plugin=("mine",), seed=3)
    changed = config.model_copy(update={"ppo": config.ppo.model_copy(update={"hidden": (32, 32), "lr_start": 0.002})})
    command = shell_command({"name": "train", **changed.model_dump(mode="json")})
    assert command == (
        "esper-ray train --task pydoc --plugin mine --host-variety --set 'a=[1, 2]' b=2 --seed 3 "
        "--ppo.lr-start 0.002 --ppo.hidden 32 32"
    )
    assert _parse(shlex.split(command)[1:]) == changed


class TestErrors:
    @pytest.mark.parametrize("command", ["report", "watch"])
    def test_a_folder_without_a_run_is_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
    ) -> None:
        (tmp_path / "file").touch()
        for name, message in {
            "gone": "there is no folder",
            "file": "is no folder",
            ".": "holds no run and no search",
        }.items():
            assert run([command, str(tmp_path / name)]) == 2
            error = capsys.readouterr().err
            assert message in error
            assert error.count("\n") == 1

    @pytest.mark.slow
    def test_a_place_that_cannot_be_written_is_refused(self, trained: Path, tmp_path: Path) -> None:
        with pytest.raises(RunFolderError, match="is a folder; name a file"):
            write_report(trained, tmp_path)
        with pytest.raises(EsperError, match="there is no folder"):
            write_report(trained, tmp_path / "gone" / "report.html")
        if os.geteuid():
            tmp_path.chmod(0o500)
            with pytest.raises(RunFolderError, match="no permission"):
                write_report(trained, tmp_path / "report.html")
            tmp_path.chmod(0o700)
        assert write_report(trained, tmp_path / "mine.html").name == "mine.html"
        assert not list(tmp_path.glob(".report-*"))


def make_row(episode: int, iteration: int, decisions: list[str], stages: list[str], **more: Any) -> dict[str, Any]:
    count = len(decisions)
    own = {key: more.pop(key) for key in list(more) if key in ("contribution", "rolled_back", "gradient_health")}
    per_epoch = {"decision": decisions, "contribution": [None] * count, "rolled_back": [None] * count} | own
    totals = {"kept_val_accuracy": 50.0, "kept_blueprint": None, "final_stage": stages[-1], "added_parameters": 0}
    return {"episode": episode, "iteration": iteration, "stages": stages, "per_epoch": per_epoch, **totals, **more}


class TestNumbers:
    ACTIONS = ("WAIT", "GERMINATE_NORM", "GERMINATE_LORA", "FOSSILIZE", "CULL")

    def test_seeds_are_followed_to_their_end(self) -> None:
        decisions = ["GERMINATE_NORM", "CULL", "GERMINATE_LORA", "WAIT", "FOSSILIZE"]
        stages = ["GERMINATED", "CULLED", "GERMINATED", "PROBATIONARY", "FOSSILIZED"]
        kept = make_row(1, 1, decisions, stages, added_parameters=7, contribution=[None, None, None, 2.0, 4.0])
        lost = make_row(2, 1, ["GERMINATE_NORM", "GERMINATE_NORM"], ["TRAINING", "BLENDING"], rolled_back=["nan", None])
        norm, lora = blueprint_scores([kept, lost], self.ACTIONS)
        assert (norm["germinated"], norm["culled"], norm["removed"], norm["dropped"], norm["fossilized"]) == (
            3,
            1,
            1,
            1,
            0,
        )
        assert (lora["fossilized"], lora["contribution"], lora["parameters"]) == (1, 3.0, (7, 7))

    def test_shares_of_the_decisions_leave_wait_out_and_add_up(self) -> None:
        rows = [make_row(1, 1, ["WAIT", "WAIT", "CULL", "GERMINATE_NORM"], ["DORMANT"] * 4)]
        shares, waits = action_shares(rows, self.ACTIONS, Bins.of(rows))
        assert sum(row["share"] for row in shares) == pytest.approx(100)
        assert {row["action"]: row["share"] for row in shares if row["share"]} == {"CULL": 50, "GERMINATE_NORM": 50}
        assert waits[0]["share"] == 50

    def test_the_spread_of_an_iteration_is_over_its_episodes(self) -> None:
        rows = [make_row(i, 1, ["WAIT"], ["DORMANT"], kept_val_accuracy=value) for i, value in enumerate((40.0, 60.0))]
        (point,) = learning_curve(rows)
        assert (point["mean"], point["std"], point["low"], point["episodes"]) == (50, 14.14, 35.86, 2)

    def test_the_gradient_map_averages_over_live_seeds_only(self) -> None:
        rows = [make_row(i, i, ["WAIT"] * 2, ["TRAINING"] * 2, gradient_health=[None, i / 4]) for i in (2, 4)]
        cells = gradient_map(rows, Bins(4), "gradient_health")
        assert [(cell["epoch"], cell["value"], cell["seeds"]) for cell in cells] == [(2, 0.75, 2)]


# Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency", 2009.
VISION = {
    "full": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}


def seen_as(colour: str, vision: str) -> tuple[float, float, float]:
    """Returns the colour in Oklab (Ottosson, 2020), as someone with that vision sees it."""
    r, g, b = (
        min(1.0, max(0.0, sum(weight * part for weight, part in zip(row, palette.linear(colour), strict=True))))
        for row in VISION[vision]
    )
    x = (0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b) ** (1 / 3)
    y = (0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b) ** (1 / 3)
    z = (0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b) ** (1 / 3)
    return (
        0.2104542553 * x + 0.7936177850 * y - 0.0040720468 * z,
        1.9779984951 * x - 2.4285922050 * y + 0.4505937099 * z,
        0.0259040371 * x + 0.7827717662 * y - 0.8086757660 * z,
    )


class TestColours:
    JUST_NOTICEABLE = 0.02

    @pytest.mark.parametrize("dark", [False, True])
    @pytest.mark.parametrize("vision", VISION)
    def test_stages_and_decisions_tell_apart_for_every_vision(self, dark: bool, vision: str) -> None:
        theme = palette.theme(dark)
        stages = [f"stage-{stage.name.lower()}" for stage in (SeedStage.DORMANT, *palette.STAGE_COLOURS)]
        decisions = [*(f"cat-{i}" for i in range(5)), "stage-fossilized", "stage-culled"]
        for group in ([*stages, "stage-embargoed"], decisions, ["learned", "baseline", "second", "third", "ink-2"]):
            for one, other in combinations(group, 2):
                apart = sum(
                    (a - b) ** 2
                    for a, b in zip(seen_as(theme[one], vision), seen_as(theme[other], vision), strict=True)
                )
                assert apart**0.5 > 3 * self.JUST_NOTICEABLE, (one, other)

    @pytest.mark.parametrize("dark", [False, True])
    def test_text_and_lines_stand_out_from_what_they_lie_on(self, dark: bool) -> None:
        theme = palette.theme(dark)
        for name in ("ink", "ink-2", "accent", "good", "bad"):
            assert all(palette.contrast(theme[name], theme[behind]) >= 4.5 for behind in ("page", "surface"))
        assert palette.contrast(theme["ink"], theme["notice"]) >= 4.5
        assert all(
            palette.contrast(theme[n], theme["surface"]) >= 3 for n in ("learned", "baseline", "second", "third")
        )

    @pytest.mark.parametrize("dark", [False, True])
    def test_values_are_ordered_by_lightness(self, dark: bool) -> None:
        steps = [palette.luminance(palette.theme(dark)[f"seq-{i}"]) for i in range(len(palette.SEQUENCE))]
        assert steps == sorted(steps)
