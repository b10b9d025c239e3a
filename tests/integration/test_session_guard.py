"""A local Ray ends with its driver, however that ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import ray_processes

from esper_ray.orchestration.fleet.session_guard import end_session

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("no_ray")]

DRIVER = """
import time
import ray
from esper_ray.orchestration.fleet.cluster import local_ray

class Busy:
    def ready(self):
        pass
    def hang(self):
        time.sleep(600)

with local_ray(num_cpus=2):
    actors = [ray.remote(num_cpus=1)(Busy).remote() for _ in range(2)]
    ray.get([actor.ready.remote() for actor in actors])
    hanging = [actor.hang.remote() for actor in actors]
    print("ready", flush=True)
    ray.get(hanging)
"""


@pytest.mark.usefixtures("nothing_left_behind")
@pytest.mark.parametrize("seconds", [None, 2.0], ids=["busy", "2 s"])
def test_a_killed_driver_leaves_no_ray_behind(seconds: float | None) -> None:
    """Killed while its actors are busy, or after so many seconds while all is only starting up."""
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    if seconds is None:
        assert driver.stdout.readline() == "ready\n"
        assert len(ray_processes()) >= 4
    else:
        time.sleep(seconds)
    os.kill(driver.pid, signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    driver.stdout.close()


def test_who_writes_into_a_session_is_ended_and_who_reads_is_not(tmp_path: Path) -> None:
    session = tmp_path / "session"
    session.mkdir()
    (session / "log").write_text("")
    hold = "import sys, time; file = open(sys.argv[1], sys.argv[2]); print('open', flush=True); time.sleep(600)"
    holders = [
        subprocess.Popen([sys.executable, "-c", hold, str(session / "log"), mode], stdout=subprocess.PIPE)
        for mode in ("a", "r")
    ]
    sleeper = [sys.executable, "-c", "print('open', flush=True); import time; time.sleep(600)"]
    named = subprocess.Popen([*sleeper, f"--temp-dir={session}"], stdout=subprocess.PIPE)
    elsewhere = subprocess.Popen([*sleeper, f"--temp-dir={tmp_path / 'other'}"], stdout=subprocess.PIPE)
    everyone = [*holders, named, elsewhere]
    try:
        for process in everyone:
            assert process.stdout is not None and process.stdout.readline()
        end_session(session)
        assert not session.exists()
        assert [process.poll() is None for process in everyone] == [False, True, False, True]
    finally:
        for process in everyone:
            process.kill()
            process.communicate()
