"""The check for GPU machines, run on the CPU at small size where Ray cannot be imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECKED = ["stages", "incubation", "lockstep", "episode"]
SPEEDS = [
    *("speed of a host, digits", "speed of 2 hosts, digits", "speed of a host, images", "speed of 2 hosts, images"),
    "speed of a wide host, images",
]
ABSENT = ("ray", "psutil", "pyarrow", "pandas", "tyro", "rich", "jinja2", "tensorboardX", "vl_convert")
"""Dependencies that a machine with torch, numpy, numba and the wheels does not have."""


@pytest.mark.timeout(900)
def test_the_gpu_check_runs_on_a_cpu_without_ray(tmp_path: Path) -> None:
    for name in ABSENT:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('there is no {name} here')\n")
    finished = subprocess.run(
        ["bash", ROOT / "benchmarks" / "gpu_check.sh", "--small", "--out", tmp_path / "results"],
        env={**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-2000:]
    found = json.loads((tmp_path / "results" / "cpu-small.json").read_text())
    assert {name: part.get("error") for name, part in found["parts"].items()} == dict.fromkeys(found["parts"])
    assert list(found["parts"]) == ["rates", *CHECKED, "synchronises", *SPEEDS]
    assert all(row["right"] for name in CHECKED for row in found["parts"][name]["rows"])
    for name in SPEEDS:
        for row in found["parts"][name]["rows"]:
            assert row["host_epochs_per_second"] > 0 and row["peak_memory"] > 0
        assert f"{name}  (" in finished.stdout
    assert len(found["parts"]["stages"]["rows"]) == 8  # seven stages, and a text
    assert found["machine"]["device"].startswith("CPU")
