"""`esper-ray report` and `esper-ray watch`: a page about a run or a search, written or served."""

import threading
import webbrowser

from esper_ray.orchestration.config import ReportConfig, WatchConfig
from esper_ray.report import ReportServer, write_report


def run_report(config: ReportConfig) -> int:
    """Writes the report, prints where it lies, and returns the exit code."""
    path = write_report(config.run, config.out)
    print(f"Written to {path} ({path.stat().st_size / 1e6:.1f} MB); it opens in any browser, without a network.")
    if config.open and not webbrowser.open(path.absolute().as_uri()):
        print("There is no browser to show it in.")
    return 0


def run_watch(config: WatchConfig) -> int:
    """Serves the report until Ctrl-C, and returns the exit code."""
    with ReportServer(config.run, config.port) as server:
        print(f"Serving {config.run} at {server.url} on this machine only; Ctrl-C ends it.", flush=True)
        if config.open and not webbrowser.open(server.url):
            print("There is no browser to show it in.", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print()
    return 0
