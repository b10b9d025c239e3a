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
from pathlib import Path
from typing import Any

import pytest
from finished_runs import FinishedRuns
from playwright.sync_api import Browser, sync_playwright
from report_browser import FAINT, chromium, draw_all, marks, opened

from esper_ray.cli.main import _parse, run
from esper_ray.errors import EsperError, RunFolderError
from esper_ray.orchestration.config import HeuristicConfig, TrainConfig
from esper_ray.report import ReportServer, embedded, render, write_plots, write_report
from esper_ray.report.shell_command import in_lines, shell_command


@pytest.fixture(scope="module")
def runs(finished_runs: FinishedRuns) -> Path:
    """A folder with a small training run and a run of the heuristic policy, played for real."""
    return {finished_runs.folder(name).parent for name in ("trained", "heuristic")}.pop()


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
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


def make_comparison() -> dict[str, Any]:
    def way(mean: float) -> dict[str, Any]:
        return {"difference": {"mean": mean, "ci95": [mean - 1, mean + 1]}, "verdict": "better"}

    host = {"hosts": "blocks 1", "count": 3, "kept": {"norm": 1.0}, "germinated_after": 3.0, "fossilized_after": None}
    means = {"score": 60.0, "kept_test_accuracy": 61.0, "kept_val_accuracy": 62.0, "added_parameters": 3.0}
    return {
        "verdict": "On 3 held-out hosts the learned policy is better than wait.",
        "controls": {"wait": way(5.0) | {"median": way(4.0)}, "random": way(2.0) | {"median": way(3.0)}},
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
                assert f"{row['kept_val_accuracy']:.1f} %" in page.inner_text("#episode-facts")
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

    @pytest.mark.parametrize(("dark", "width"), [(True, 360), (False, 1280)])
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
            assert found["learning"] == 5
            assert "health-kl" not in found
            assert "esper-ray heuristic" in page.inner_text("#command-text")


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

    def test_it_is_legible_on_a_phone(self, search: Path, browser: Browser) -> None:
        with opened(browser, report_url(search), 360, dark=True) as (page, _):
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


def test_the_recorded_command_makes_the_same_run_again(runs: Path) -> None:
    for name, model in (("trained", TrainConfig), ("heuristic", HeuristicConfig)):
        recorded = json.loads((runs / name / "config.json").read_text())["command"]
        words = shlex.split(in_lines(shell_command(recorded), 10).replace("\\\n", " "))
        again = _parse(words[1:])
        assert isinstance(again, model)
        assert {"name": model.command, **again.model_dump(mode="json")} == recorded


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
