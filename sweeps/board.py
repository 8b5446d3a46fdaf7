"""``isoflop board``: a sweep as one live page in the browser. It only reads.

isoflop board sweep=quickstart
isoflop board sweep=quickstart port=8061
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from sweeps.app import run_verb, typed
from sweeps.config import BoardCommand
from sweeps.dispatch.backlog import read_backlog
from sweeps.dispatch.slurm import Scheduler
from sweeps.dispatch.state import inspect
from sweeps.paths import SweepFolder
from sweeps.planning.points import read_plan
from sweeps.terminal import say
from sweeps.watch.overview import overview
from sweeps.watch.sofar import FitSoFar
from trainer.errors import MachineFault, UserError

FRESH_SECONDS = 1.0
"""However many browsers look, the disk is read once in this time."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
KINDS = {"board.css": "text/css", "board.js": "text/javascript"}


class Board:
    """What the page asks for, read from the disk."""

    def __init__(self, folder: SweepFolder, config: BoardCommand) -> None:
        self._folder, self._config = folder, config
        self._scheduler, self._fits = Scheduler(), FitSoFar(folder, config.fit, config)
        self._lock = threading.Lock()
        self._seen: tuple[float, dict[str, Any]] | None = None

    @property
    def fit(self) -> Path:
        """The folder of the last fit."""
        return Path(self._config.out) if self._config.out else self._folder.fit

    def overview(self) -> dict[str, Any]:
        """The page's content.

        Raises
        ------
        UserError
            If the sweep is not there any more, or damaged.
        """
        with self._lock:
            if self._seen is None or time.monotonic() - self._seen[0] > FRESH_SECONDS:
                content = self._read()
                self._seen = (time.monotonic(), content)
            return self._seen[1]

    def figures(self) -> dict[str, Path]:
        """The last fit's figures, by name."""
        return {path.stem: path for path in sorted((self.fit / "figures").glob("*.svg"))}

    def close(self) -> None:
        """Let go of what the fits take."""
        self._fits.close()

    def _read(self) -> dict[str, Any]:
        plan = read_plan(self._folder)
        backlog = read_backlog(self._folder, self._scheduler)
        states = inspect(self._folder, plan, self._config.limits.lost_attempts, backlog)
        fit, price = self._fits.of(states), self._config.device.price_per_hour
        seen = overview(self._folder, states, fit, fitting=self._fits.busy, price_per_hour=price)
        report = self.fit / "report.html"
        made = report.stat().st_mtime if report.is_file() else None
        return seen.to_dict() | {"figures": list(self.figures()), "report": made is not None, "made": made}


def make_app(board: Board, host: str) -> Any:
    """The web application: GET only, its own files only."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route

    guarded = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
    sources = files("sweeps")

    def page(_: Request) -> Response:
        return Response(sources.joinpath("board.html").read_bytes(), media_type="text/html", headers=guarded)

    def source(request: Request) -> Response:
        name = request.url.path.removeprefix("/")
        return Response(sources.joinpath(name).read_bytes(), media_type=KINDS[name], headers=guarded)

    def content(_: Request) -> Response:
        try:
            return JSONResponse(board.overview(), headers=guarded)
        except (UserError, MachineFault) as error:
            return PlainTextResponse(str(error), status_code=503, headers=guarded)

    def report(_: Request) -> Response:
        path = board.fit / "report.html"
        if not path.is_file():
            raise HTTPException(404, "there is no report yet; `isoflop fit` writes one")
        return FileResponse(path, media_type="text/html", headers={"X-Content-Type-Options": "nosniff"})

    def figure(request: Request) -> Response:
        path = board.figures().get(request.path_params["name"])
        if path is None:
            raise HTTPException(404, "there is no such figure")
        return FileResponse(path, media_type="image/svg+xml", headers=guarded)

    handlers: dict[str, Callable[[Request], Response]] = {
        "/": page,
        "/overview.json": content,
        "/report": report,
        "/figures/{name}": figure,
        **{f"/{name}": source for name in KINDS},
    }
    # Pages of other sites that a browser resolves to this machine are not served.
    names = ["*"] if host in ("0.0.0.0", "::") else ["localhost", "127.0.0.1", "[::1]", host]
    return Starlette(
        routes=[Route(path, handler, methods=["GET"]) for path, handler in handlers.items()],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=names, www_redirect=False)],
    )


def listen(host: str, port: int) -> socket.socket:
    """A socket of the board's own.

    Raises
    ------
    UserError
        If the port is taken, or the address is not this machine's.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"port={port} must be from 0 to 65535, 0 for any that is free; set port=<number>.")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen()  # who asks before the server is up waits
    except OSError as error:
        raise UserError(
            f"host={host} port={port} cannot be listened on ({error.strerror or error}); choose another port=<number>."
        ) from None
    return made


def _body(raw: DictConfig) -> int:
    try:
        import uvicorn
    except ImportError:
        raise UserError(
            "the board needs starlette and uvicorn; install them with: pip install 'isoflop[board]'."
        ) from None
    config: BoardCommand = typed(raw)
    folder = SweepFolder.of(config.root, config.sweep.name)
    read_plan(folder)
    board, made = Board(folder, config), listen(config.host, config.port)
    name = f"[{config.host}]" if ":" in config.host else config.host
    print(f"http://{name}:{made.getsockname()[1]}/", flush=True)  # noqa: T201
    if not _is_local(config.host):
        say(f"host={config.host}: everybody who reaches this machine sees the sweep; there is no password")
    say("Ctrl-C ends it")
    server = uvicorn.Server(uvicorn.Config(make_app(board, config.host), log_level="warning", access_log=False))
    try:
        server.run(sockets=[made])
    finally:
        board.close()
        made.close()
    return 0


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


HELP = """isoflop board [sweep=NAME] [port=NUMBER] [host=ADDRESS]

The sweep as one page in the browser, live while runs go: progress by budget, losses, the fit so far with intervals,
spent against planned, the report and figures of the last fit. It only reads, and listens on this machine alone unless
host= says otherwise."""


def main() -> None:
    """Entry point of the verb."""
    run_verb("board", _body, HELP)


if __name__ == "__main__":
    main()
