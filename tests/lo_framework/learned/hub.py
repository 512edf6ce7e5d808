"""A hub on this machine: what an upload asks of it, over HTTP, by its public protocol.

The hub's own client speaks to it, so that a test sees what goes over the wire.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_this_test"
COMMIT = "c" * 40


class Hub:
    """``files``: repository -> name -> bytes; ``private``: of each; ``asked``: method and path."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.asked: list[str] = []
        self.address = ""
        self.readers_only = False


@contextmanager
def hub() -> Iterator[Hub]:
    here = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            here.asked.append(f"{self.command} {self.path}")
            repository, _, name = self.path[1:].partition("/resolve/main/")
            data = here.files.get(repository, {}).get(name)
            if data is None:
                known = repository in here.files
                code = "EntryNotFound" if known else "RepoNotFound"
                return self._answer(404, {}, {"X-Error-Code": code})
            tag = hashlib.sha256(data).hexdigest()
            self._answer(200, data, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})

        def do_POST(self) -> None:
            here.asked.append(f"{self.command} {self.path}")
            data = self._body()
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self._answer(401, {"error": "Invalid username or password."})
            if here.readers_only:
                return self._answer(403, {"error": "You don't have the rights"})
            if self.path == "/api/repos/create":
                return self._create(json.loads(data))
            if self.path == "/api/validate-yaml":  # of the card's head
                assert json.loads(data)["content"].startswith("---\nlibrary_name: lo-framework\n")
                return self._answer(200, {"errors": [], "warnings": []})
            repository, what, _ = self.path.removeprefix("/api/models/").rsplit("/", 2)
            if what == "preupload":
                told = [
                    {"path": x["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for x in json.loads(data)["files"]
                ]
                return self._answer(200, {"files": told})
            assert what == "commit", self.path
            for line in map(json.loads, data.decode().splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    here.files[repository][line["value"]["path"]] = content
            url = f"{here.address}/{repository}/commit/{COMMIT}"
            self._answer(200, {"success": True, "commitOid": COMMIT, "commitUrl": url})

        def _create(self, asked: dict[str, Any]) -> None:
            name = f"{asked['organization']}/{asked['name']}"
            url = {"url": f"{here.address}/{name}"}
            if name in here.files:
                return self._answer(409, {"error": "You already created this model repo"} | url)
            here.files[name] = {}
            # Older clients say the one, newer ones the other.
            here.private[name] = bool(asked.get("private") or asked.get("visibility") == "private")
            self._answer(200, url)

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data

        def _answer(
            self, code: int, content: bytes | dict[str, Any], headers: dict[str, str] | None = None
        ) -> None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(code)
            for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    here.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield here
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
