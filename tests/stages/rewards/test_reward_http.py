"""A scorer behind HTTP, against a server of this machine: what is sent, and every way in which the answer can be wrong."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from luthier.core.config.schema import Choice
from luthier.core.frozen import freeze
from luthier.core.rewards import RewardError, Rewards, Scored, open_rewards

NO_RUN: Any = None
ANSWERS = [
    Scored(
        prompt=f"p{row}", text="x" * row, ids=[1], prompt_ids=[2], finished=True, reference=None if row else "ref", row=row
    )
    for row in range(3)
]


class Scorer(HTTPServer):
    """Answers each request by `reply(request) -> (status, headers, body)`, and keeps what it was asked."""

    reply: Callable[[Any], tuple[int, dict[str, str], bytes]]
    asked: list[Any]
    waiting: threading.Event


class Handler(BaseHTTPRequestHandler):
    server: Scorer

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, self.headers["Content-Type"], request))
        status, headers, body = self.server.reply(request)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.server.asked.append(("GET", self.path))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Scorer]:
    made = Scorer(("127.0.0.1", 0), Handler)
    made.asked, made.waiting = [], threading.Event()
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.waiting.set()
    made.shutdown()
    made.server_close()
    thread.join()


def opened(server: Scorer, **options: Any) -> Rewards:
    url = f"http://127.0.0.1:{server.server_port}/score"
    return open_rewards([Choice(use="http", options=freeze({"url": url, **options}))], runtime=NO_RUN)


def test_prompts_completions_and_references_go_out_and_rewards_come_back(server: Scorer) -> None:
    server.reply = lambda request: (
        200,
        {},
        json.dumps({"rewards": [len(text) for text in request["completions"]]}).encode(),
    )
    assert opened(server, weight=0.5).score(ANSWERS).total == [0.0, 0.5, 1.0]
    sent = {"prompts": ["p0", "p1", "p2"], "completions": ["", "x", "xx"], "references": ["ref", None, None]}
    assert server.asked == [("/score", "application/json", sent)]


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (500, b"out of order", "answered 500 .*: out of order"),
        (404, b"", "answered 404"),
        (200, b"<html>", "answered no JSON"),
        (200, b"[1, 2, 3]", 'without "rewards"'),
        (200, b'{"scores": [1, 2, 3]}', 'without "rewards"'),
        (200, b'{"rewards": [1, 2]}', "gave 2 numbers for 3 answers"),
        (200, b'{"rewards": [1, NaN, 3]}', "gave nan, .* for row 1"),
        (200, b'{"rewards": [1, null, 3]}', "gave None, .* for row 1"),
        (200, b'{"rewards": [1, 2, "3"]}', "gave '3', .* for row 2"),
        (200, b'{"rewards": 1}', "gave int, not a list"),
    ],
)
def test_answers_that_are_no_rewards(server: Scorer, status: int, body: bytes, said: str) -> None:
    server.reply = lambda request: (status, {}, body)
    with pytest.raises(RewardError, match=said) as caught:
        opened(server).score(ANSWERS)
    assert caught.value.term == "http"
    assert len(server.asked) == 1  # no second try


def test_a_redirect_is_not_followed(server: Scorer) -> None:
    elsewhere = f"http://127.0.0.1:{server.server_port}/elsewhere"
    server.reply = lambda request: (302, {"Location": elsewhere}, b"")
    with pytest.raises(RewardError, match="answered 302"):
        opened(server).score(ANSWERS)
    assert len(server.asked) == 1


def test_a_scorer_that_does_not_answer_in_time(server: Scorer) -> None:
    def wait(request: Any) -> tuple[int, dict[str, str], bytes]:
        server.waiting.wait(20)
        return 200, {}, b"{}"

    server.reply = wait
    with pytest.raises(RewardError, match=r"gave no answer in 0.2 s") as caught:
        opened(server, timeout=0.2).score(ANSWERS)
    assert caught.value.rows == (0, 1, 2)


def test_a_refusal_whose_text_does_not_come() -> None:
    """It is an error of the reward all the same: a stage saves a checkpoint for no other."""
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as pool:

        def refuse() -> socket.socket:
            connection, _ = listening.accept()
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 503 busy\r\nContent-Length: 5\r\n\r\n")
            return connection

        refused = pool.submit(refuse)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/score"
        rewards = open_rewards([Choice(use="http", options=freeze({"url": url, "timeout": 0.5}))], runtime=NO_RUN)
        with pytest.raises(RewardError, match=r"answered 503 busy: \(its text did not come: TimeoutError\)"):
            rewards.score(ANSWERS)
        refused.result().close()


def test_an_answer_that_is_too_large(server: Scorer) -> None:
    server.reply = lambda request: (200, {}, b'{"rewards": [1, 2, 3], "why": "' + b"x" * 5000 + b'"}')
    with pytest.raises(RewardError, match=r"larger than max_bytes \(1,000\)"):
        opened(server, max_bytes=1000).score(ANSWERS)


def test_nobody_listens(server: Scorer) -> None:
    rewards = opened(server)
    server.shutdown()
    server.server_close()
    with pytest.raises(RewardError, match="could not be asked: ConnectionRefusedError"):
        rewards.score(ANSWERS)


def test_proxies_of_the_environment_do_not_see_what_goes_to_this_machine(
    server: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9/")
    server.reply = lambda request: (200, {}, b'{"rewards": [1, 2, 3]}')
    assert opened(server).score(ANSWERS).total == [1.0, 2.0, 3.0]
