"""A stand-in for W&B's server, as far as its real client talks to it for runs: one process's memory, on localhost.

It keeps what it is sent as the service is documented to: history lines by their offset, a summary and a config that
are replaced, and the state that a run was left in. It can be told to refuse, to hang, or to be busy for a while.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789abcdef" * 2 + "01234567"
"""The key that it takes: 40 characters, as W&B's are."""


@dataclass
class StoredRun:
    """A run as the server has it."""

    name: str
    attributes: dict[str, Any] = field(default_factory=dict)
    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    state: str = "running"
    preempting: bool = False
    opened: int = 0

    @property
    def config(self) -> dict[str, Any]:
        return {k: v["value"] for k, v in json.loads(self.attributes.get("config") or "{}").items()}

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [self.history[line] for line in sorted(self.history)]

    def node(self) -> dict[str, Any]:
        given = self.attributes
        last = max((row.get("_step", 0) for row in self.rows), default=-1)
        return {
            "id": f"run-{self.name}",
            "projectId": "1",
            "name": self.name,
            "displayName": given.get("displayName"),
            "tags": given.get("tags") or [],
            "group": given.get("groupName"),
            "jobType": given.get("jobType"),
            "state": self.state,
            "config": given.get("config") or "{}",
            "summaryMetrics": json.dumps(self.summary),
            "systemMetrics": "{}",
            "sweepName": None,
            "commit": None,
            "readOnly": False,
            "createdAt": "2026-01-01T00:00:00",
            "heartbeatAt": "2026-01-01T00:00:00",
            "description": None,
            "notes": None,
            "user": {"name": "u", "username": "u"},
            "historyLineCount": len(self.history),
            "historyKeys": {"lastStep": last, "keys": {}, "sets": []},
            "wandbConfig": json.dumps({"t": 1}),
            "logLineCount": 0,
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(self.history[max(self.history)])] if self.history else []),
            "eventsTail": "[]",
            "project": {"id": "1", "name": "study", "entity": {"id": "1", "name": "lab"}},
        }


class StandIn:
    """The server's memory, and what it is told to do wrong."""

    def __init__(self) -> None:
        self.runs: dict[str, StoredRun] = {}
        self.files: dict[str, bytes] = {}
        self.artifacts: list[tuple[str, str, str]] = []
        """Type, name and digest."""
        self.asked: list[str] = []
        """Operations, in their order."""
        self.projects = {"study"}
        self.hanging = threading.Event()
        self.busy = 0
        """So many of the next queries get 429."""
        self.unknown: list[str] = []
        self.sent = 0
        """History rows received, doubled ones included."""

    # GraphQL

    def answer(self, operation: str, given: dict[str, Any]) -> Any:
        handler = getattr(self, f"_{operation}", None)
        if handler is None:
            self.unknown.append(operation)
            return {}
        return handler(given)

    def _ServerFeaturesQuery(self, given: dict[str, Any]) -> Any:  # noqa: N802
        return {"serverInfo": {"features": []}}

    def _Viewer(self, given: dict[str, Any]) -> Any:  # noqa: N802
        teams = {"edges": [{"node": {"name": "lab"}}]}
        return {
            "viewer": {"id": "1", "entity": "lab", "username": "u", "email": "u@x.org", "flags": "{}", "teams": teams}
        }

    def _GetDefaultEntity(self, given: dict[str, Any]) -> Any:  # noqa: N802
        return {"viewer": {"id": "1", "entity": "lab"}}

    def _RunResumeStatus(self, given: dict[str, Any]) -> Any:  # noqa: N802
        run = self.runs.get(given["name"])
        if run is not None:  # asked once, when a run is opened; it is upserted whenever its config changes, too
            run.preempting = False
        entity = {"id": "1", "name": "lab"}
        return {"model": {"id": "1", "name": "study", "entity": entity, "bucket": run and run.node()}}

    def _UpsertBucket(self, given: dict[str, Any]) -> Any:  # noqa: N802
        name = given.get("name") or str(given.get("id", "")).removeprefix("run-")
        fresh = name not in self.runs
        run = self.runs.setdefault(name, StoredRun(name))
        run.attributes |= {key: value for key, value in given.items() if value is not None}
        if given.get("state"):
            run.state = given["state"]
        elif given.get("name"):
            run.opened += 1
            run.state = "running"
        if given.get("summaryMetrics"):
            run.summary |= json.loads(given["summaryMetrics"])
        node = run.node() | {"description": None, "sweepName": None}
        return {"upsertBucket": {"bucket": node, "inserted": fresh}}

    def _Runs(self, given: dict[str, Any]) -> Any:  # noqa: N802
        if given["project"] not in self.projects:
            return {"project": None}
        wanted = json.loads(given.get("filters") or "{}")
        found = [
            run
            for run in self.runs.values()
            if all(
                {"group": run.node()["group"], "jobType": run.node()["jobType"]}.get(k) == v for k, v in wanted.items()
            )
        ]
        begin, size = int(given.get("cursor") or 0), given.get("perPage") or 50
        edges = [
            {"node": run.node(), "cursor": str(begin + number)}
            for number, run in enumerate(found[begin : begin + size], 1)
        ]
        page = {"endCursor": str(begin + len(edges)), "hasNextPage": begin + size < len(found)}
        return {
            "project": {
                "internalId": "1",
                "runCount": len(found),
                "readOnly": False,
                "runs": {"edges": edges, "pageInfo": page},
            }
        }

    def _RunHistoryKeys(self, given: dict[str, Any]) -> Any:  # noqa: N802
        return {"project": {"run": self.runs[given["name"]].node()}}

    def _RunParquetHistory(self, given: dict[str, Any]) -> Any:  # noqa: N802
        return {"project": {"run": {"parquetHistory": {"parquetUrls": [], "liveData": []}}}}

    def _HistoryPage(self, given: dict[str, Any]) -> Any:  # noqa: N802
        rows = [r for r in self.runs[given["run"]].rows if given["minStep"] <= r["_step"] < given["maxStep"]]
        return {"project": {"run": {"history": [json.dumps(row) for row in rows[: given["pageSize"]]]}}}

    def _CreateRunFiles(self, given: dict[str, Any]) -> Any:  # noqa: N802
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{given['run']}/{name}"} for name in given["files"]]
        return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}

    def _CreateArtifact(self, given: dict[str, Any]) -> Any:  # noqa: N802
        one = given["input"]
        self.artifacts.append((one["artifactTypeName"], one["artifactCollectionName"], one["digest"]))
        made = {"id": str(len(self.artifacts)), "state": "COMMITTED", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": made}}  # its files are there already: the client sends none

    # the file stream

    def stream(self, name: str, body: dict[str, Any]) -> None:
        run = self.runs[name]
        files = body.get("files") or {}
        history = files.get("wandb-history.jsonl")
        if history:
            for number, line in enumerate(history["content"], history["offset"]):
                run.history[number] = json.loads(line)
                self.sent += 1
        summary = files.get("wandb-summary.json")
        if summary:
            run.summary = json.loads(summary["content"][-1])
        run.preempting |= bool(body.get("preempting"))
        if body.get("complete"):
            ended = "finished" if body.get("exitcode") == 0 else "failed"
            run.state = "preempted" if run.preempting and ended == "failed" else ended

    url = ""


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """A server that runs while the block does."""
    memory = StandIn()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def _say(self, value: Any, status: int = 200) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def do_POST(self) -> None:
            body = self._body()
            while memory.hanging.is_set():
                time.sleep(0.1)
            if not self.headers.get("Authorization", "").startswith("Basic ") or not _knows(
                self.headers["Authorization"]
            ):
                self._say({"errors": [{"message": "user is not logged in"}]}, 401)
                return
            found = re.match(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream", self.path)
            if found:
                memory.asked.append("file_stream")
                memory.stream(found[3], json.loads(body))
                self._say({"exitcode": None, "limits": {}})
                return
            asked = json.loads(body)
            operation = (re.search(r"(?:query|mutation)\s+(\w+)", asked.get("query", "")) or [None, "?"])[1]
            memory.asked.append(operation)
            if memory.busy:
                memory.busy -= 1
                self._say({"errors": [{"message": "rate limit exceeded"}]}, 429)
                return
            self._say({"data": memory.answer(operation, asked.get("variables") or {})})

        def do_PUT(self) -> None:
            memory.files[self.path.removeprefix("/upload/")] = self._body()
            self._say({})

        def do_GET(self) -> None:
            self._say({})

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # the client went away

    server = Server(("127.0.0.1", 0), Handler)
    memory.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield memory
    finally:
        memory.hanging.clear()
        server.shutdown()
        server.server_close()


def _knows(header: str) -> bool:
    import base64

    return base64.b64decode(header.removeprefix("Basic ")).decode().partition(":")[2] == KEY
