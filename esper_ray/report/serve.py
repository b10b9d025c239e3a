"""Serves a report on this machine and updates it while its run goes on."""

import json
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import Self

from esper_ray.errors import EsperError, RunFolderError
from esper_ray.report.reading import require_readable, version_of
from esper_ray.report.write import render

_ADDRESS = "127.0.0.1"
_NAMES = ("127.0.0.1", "localhost")
"""Names that a browser on this machine uses. Another Host means that a foreign page had its name point here."""


class ReportServer:
    """A web server on 127.0.0.1: `/` is the report, `/version` its version.

    Use it as a context manager.

    Args:
        folder: of a run or a search.
        port: 0: a free one.

    Raises:
        RunFolderError: the folder holds neither.
        EsperError: the port is taken, or may not be used.
    """

    def __init__(self, folder: Path, port: int = 0) -> None:
        require_readable(folder)
        self._report = _LiveReport(folder)
        try:
            self._server = _Server((_ADDRESS, port), _Handler)
        except OSError as error:
            raise EsperError(
                f"--port {port} cannot be used: {error.strerror}; name another one, or leave it out for a free one"
            ) from None
        self._server.report = self._report
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True, name="esper-report")

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """URL of the report."""
        return f"http://{_ADDRESS}:{self.port}/"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _LiveReport:
    """The report, made again only when a file has changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._version = ""
        self._html = ""

    def html(self) -> str:
        with self._lock:
            version, _ = version_of(self._folder)
            if version != self._version or not self._html:
                self._html, self._version = render(self._folder, live=True), version
            return self._html

    def news(self) -> dict[str, Any]:
        """Returns the version, and how long nothing has been written, in seconds."""
        version, still = version_of(self._folder)
        return {"version": version, "still_seconds": round(still, 1)}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    report: _LiveReport


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "esper_ray"
    sys_version = ""

    def do_GET(self) -> None:
        if not self._is_for_us():
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", "This server answers to 127.0.0.1 and localhost only.\n")
            return
        path = self.path.partition("?")[0]
        try:
            if path == "/":
                self._answer(HTTPStatus.OK, "text/html", self.server.report.html())
            elif path == "/version":
                self._answer(HTTPStatus.OK, "application/json", json.dumps(self.server.report.news()))
            else:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", "There is nothing here but / and /version.\n")
        except RunFolderError as error:
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", f"{error}\n")

    def _is_for_us(self) -> bool:
        name, _, port = self.headers.get("Host", "").partition(":")
        return name in _NAMES and (not port or port.isdigit())

    def _answer(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("X-Frame-Options", "DENY")
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the page was closed or reloaded meanwhile

    def log_message(self, format: str, *args: Any) -> None:
        """Suppresses the request log, which would bury the command line's own output."""
