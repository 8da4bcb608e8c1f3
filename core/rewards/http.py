"""A scorer behind HTTP: prompts and answers go out as JSON, rewards come back.

    POST {"prompts": [...], "completions": [...], "references": [...]}   ->   {"rewards": [0.5, ...]}

Sent to this machine, or to a host that the configuration allows, once: no retries, no redirects, a deadline, a size limit.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from typing import Any, Final
from urllib.parse import urlsplit

from luthier.core.rewards.config import HttpTerm, is_loopback
from luthier.core.rewards.scoring import RewardError, Score, Scored

CHUNK: Final = 64 * 1024


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Another address is another host that nobody has allowed."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def http(name: str, term: HttpTerm) -> Score:
    """Scores by requests; raises RewardError where no such answer comes in time."""
    handlers: list[Any] = [_NoRedirects()]
    if is_loopback(urlsplit(term.url).hostname or ""):
        handlers.append(urllib.request.ProxyHandler({}))
    opener = urllib.request.build_opener(*handlers)

    def score(answers: Sequence[Scored]) -> Any:
        rows = [answer.row for answer in answers]
        body = json.dumps(
            {
                "prompts": [answer.prompt for answer in answers],
                "completions": [answer.text for answer in answers],
                "references": [answer.reference for answer in answers],
            }
        ).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        request = urllib.request.Request(term.url, body, headers, method="POST")  # noqa: S310  # http or https: HttpTerm
        try:
            text = _answer(opener, request, term)
        except urllib.error.HTTPError as error:
            message = f"{term.url} answered {error.code} {error.reason}: {_said(error)}"
            raise RewardError(name, message, rows=rows) from error
        except TimeoutError as error:
            fix = "raise `timeout`, or make the scorer faster"
            raise RewardError(name, f"{term.url} gave no answer in {term.timeout:g} s", rows=rows, fix=fix) from error
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                fix = "raise `timeout`, or check the address"
                message = f"{term.url} could not be reached in {term.timeout:g} s"
                raise RewardError(name, message, rows=rows, fix=fix) from error
            message = f"{term.url} could not be asked: {type(reason).__name__}: {reason}"
            raise RewardError(name, message, rows=rows, fix="check that the scorer runs") from error
        return _rewards(name, term, text, rows)

    return score


def _answer(opener: urllib.request.OpenerDirector, request: urllib.request.Request, term: HttpTerm) -> bytes:
    """The body. Raises TimeoutError for one that trickles in, ValueError for one that is too large."""
    deadline = time.monotonic() + term.timeout
    with opener.open(request, timeout=term.timeout) as response:
        body = bytearray()
        while part := response.read1(CHUNK):
            body += part
            if len(body) > term.max_bytes:
                raise ValueError(f"its answer is larger than max_bytes ({term.max_bytes:,})")
            if time.monotonic() > deadline:
                raise TimeoutError
    return bytes(body)


def _said(error: urllib.error.HTTPError) -> str:
    """How the body of a refusal begins."""
    try:
        with error:
            return error.read(200).decode("utf-8", "replace").strip()
    except (OSError, HTTPException) as broken:
        return f"(its text did not come: {type(broken).__name__})"


def _rewards(name: str, term: HttpTerm, text: bytes, rows: Sequence[int]) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RewardError(name, f"{term.url} answered no JSON: {text[:80]!r}", rows=rows) from error
    if not isinstance(value, dict) or "rewards" not in value:
        raise RewardError(name, f'{term.url} answered without "rewards": {text[:80]!r}', rows=rows)
    return value["rewards"]
