"""HTTP as a Hub speaks it: who asks, what is answered, and what goes wrong on the way because a test wants it to."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_state import HubState, Refusal, User

JSON = "application/json"


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: Any
    body: bytes
    user: User | None
    url: str  # of the server

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] | None = None


def as_json(value: Any, status: int = 200) -> Answer:
    return Answer(json.dumps(value).encode(), status, {"Content-Type": JSON})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet an answer: small ones would wait for each other
    state: HubState
    url: str
    lock: threading.Lock
    routes: list[tuple[str, Callable[..., Answer]]]  # what to do, by a pattern of "METHOD path"

    def handle_one(self) -> None:
        split = urlsplit(self.path)
        line = f"{self.command} {unquote(split.path)}" + (f"?{split.query}" if split.query else "")
        with self.lock:
            fault = next((fault for fault in self.state.faults if fault.strikes(line)), None)
        if fault and fault.drop == "midway":
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            return self.hang_up(line)
        body = self.read_body()
        if fault and fault.drop == "silent":
            threading.Event().wait(fault.seconds)
            return self.hang_up(line)
        if fault and fault.status:
            text = fault.body if fault.body is not None else json.dumps({"error": "as was asked for"})
            answer = Answer(text.encode(), fault.status, {"Content-Type": JSON, **fault.headers})
        else:
            answer = self.answer(split, body)
        if fault and fault.drop == "after":
            return self.hang_up(line)
        self.send(answer, line, cut=bool(fault and fault.drop == "truncate"))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_one

    def answer(self, split: Any, body: bytes) -> Answer:
        try:
            request = Request(
                self.command,
                unquote(split.path),
                parse_qs(split.query),
                self.headers,
                body,
                self.user(),
                self.url,
            )
            for pattern, method in self.routes:
                if found := re.fullmatch(pattern, f"{self.command} {request.path}"):
                    with self.lock:
                        return method(self.state, request, *found.groups())
            raise Refusal(404, f"There is no {self.command} {request.path} here")
        except Refusal as refusal:
            answer = as_json(refusal.body, refusal.status)
            answer.headers["X-Error-Message"] = refusal.message
            answer.headers |= {"X-Error-Code": refusal.code} if refusal.code else {}
            return answer

    def user(self) -> User | None:
        """Who asks; a token that nobody has is refused, whatever is asked."""
        header = self.headers.get("Authorization")
        if header is None:
            return None
        user = self.state.users.get(header.removeprefix("Bearer "))
        if user is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return user

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def send(self, answer: Answer, line: str, cut: bool) -> None:
        self.state.requests.append(f"{line} {answer.status}")
        self.send_response(answer.status)
        for name, value in (answer.headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: len(answer.body) // 2] if cut else answer.body)
        self.close_connection |= cut  # what was sent still arrives

    def hang_up(self, line: str) -> None:
        """Break the connection as a failing network does: no answer and no farewell."""
        self.state.requests.append(f"{line} 0")
        self.close_connection = True
        with suppress(OSError):
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def log_message(self, *arguments: object) -> None:
        pass
