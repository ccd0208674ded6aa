"""As much of HTTP as a scraper speaks, and what comes in its place."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

import pytest

from sigd.daemon.admin.metrics.http import HEADER_LINES_MAX, Page, is_http, respond


async def _page() -> Page:
    return Page(HTTPStatus.OK, "text/plain", b"counts\n")


def ask(request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer."""

    async def main() -> bytes:
        reader = asyncio.StreamReader(limit=4096)
        reader.feed_data(request)
        reader.feed_eof()
        return await respond(await reader.readline(), reader, {"/metrics": _page, "/healthz": _page})

    head, _, body = asyncio.run(main()).partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    assert first.startswith("HTTP/1.1 ")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in lines), body


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: text/plain\r\n\r\n",
        b"GET /metrics HTTP/1.0\r\n\r\n",
        b"GET /metrics?name=sigd HTTP/1.1\n\n",
        b"GET /healthz HTTP/1.1\r\n",
    ],
)
def test_a_page(request_: bytes) -> None:
    status, headers, body = ask(request_)
    assert (status, body) == (200, b"counts\n")
    assert headers == {"Content-Type": "text/plain", "Content-Length": "7", "Connection": "close"}


def test_only_its_head() -> None:
    status, headers, body = ask(b"HEAD /metrics HTTP/1.1\r\n\r\n")
    assert (status, body, headers["Content-Length"]) == (200, b"", "7")


@pytest.mark.parametrize(
    ("request_", "status", "said"),
    [
        (b"GET /metric HTTP/1.1\r\n\r\n", 404, "there are /metrics and /healthz"),
        (b"GET /../metrics HTTP/1.1\r\n\r\n", 404, "there are"),
        (b"GET /\xff HTTP/1.1\r\n\r\n", 404, "there are"),
        (b"POST /metrics HTTP/1.1\r\n\r\n{}", 405, "GET and HEAD do"),
        (b"GET /metrics x HTTP/1.1\r\n\r\n", 400, "expected a line such as"),
        (b'{"op": "status"}\n', 400, "expected a line such as"),
        (b"\x16\x03\x01\n", 400, "expected a line such as"),
        (b"", 400, "expected a line such as"),
        (b"GET /metrics HTTP/1.1\r\n" + b"A: b\r\n" * (HEADER_LINES_MAX + 1), 431, "64 do"),
        (b"GET /metrics HTTP/1.1\r\nA: " + b"x" * 5000 + b"\r\n\r\n", 431, "too long"),
    ],
)
def test_what_cannot_be_answered_is_told_so(request_: bytes, status: int, said: str) -> None:
    code, headers, body = ask(request_)
    assert code == status
    assert said in body.decode()
    assert int(headers["Content-Length"]) == len(body)
    assert (headers.get("Allow") is not None) == (status == 405)


def test_what_is_http() -> None:
    assert is_http(b"GET /metrics HTTP/1.1\r\n")
    assert is_http(b"PUT / HTTP/1.0\n")
    assert not is_http(b'{"op": "HTTP/1.1"}\n')
    assert not is_http(b"")
