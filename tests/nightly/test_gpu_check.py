"""The check for GPU machines, run on the CPU at small size where Ray cannot be imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECKED = {"stages", "incubation", "lockstep", "episode"}


@pytest.mark.timeout(900)
def test_the_gpu_check_runs_on_a_cpu_without_ray(tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("raise ImportError('there is no Ray here')\n")
    finished = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "gpu_check.py", "--small", "--out", tmp_path / "results"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-2000:]
    found = json.loads((tmp_path / "results" / "cpu-small.json").read_text())
    assert {name: part.get("error") for name, part in found["parts"].items()} == dict.fromkeys(found["parts"])
    assert all(found["parts"][name]["rows"] for name in CHECKED)
    assert len(found["parts"]["stages"]["rows"]) == 8  # seven stages, and a text
    assert found["machine"]["device"].startswith("CPU")
