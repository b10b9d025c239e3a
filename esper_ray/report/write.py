"""Writes the report of a run folder or a search folder."""

import os
import uuid
from contextlib import suppress
from pathlib import Path

from esper_ray.errors import RunFolderError
from esper_ray.orchestration.tuning.search_folder import is_search
from esper_ray.report.page import Page
from esper_ray.report.reading import load_run, load_search, require_readable
from esper_ray.report.run_page import run_page
from esper_ray.report.search_page import search_page

REPORT = "report.html"


def load_page(folder: Path) -> Page:
    """Returns the page of a run or a search.

    Raises:
        RunFolderError: the folder holds neither, or a file in it is damaged.
    """
    require_readable(folder)
    return search_page(load_search(folder)) if is_search(folder) else run_page(load_run(folder))


def render(folder: Path, live: bool = False) -> str:
    """Returns the report of a run or a search as HTML.

    Args:
        live: the page keeps itself up to date, from the server that it came from.

    Raises:
        RunFolderError: the folder holds neither, or a file in it is damaged.
    """
    return load_page(folder).html(live)


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Writes the report atomically and returns its path.

    Args:
        out: unset: report.html in the folder.

    Raises:
        RunFolderError: there is no run and no search, it is damaged, or the report cannot be written.
    """
    require_readable(folder)
    path = out or folder / REPORT
    if path.is_dir():
        raise RunFolderError(f"--out {path} is a folder; name a file, such as {path / REPORT}")
    if not path.parent.is_dir():
        raise RunFolderError(f"--out {path} cannot be written: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise RunFolderError(f"{path} cannot be written: no permission in {path.parent}; name a file with --out")
    text = render(folder)
    partial = path.with_name(f".report-{uuid.uuid4().hex}.writing")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.rename(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise RunFolderError(f"{path} cannot be written: {error.strerror}; name another file with --out") from None
    return path
