"""As much of HTTP/1 as a scraper speaks: GET and HEAD of a few pages, one request for each connection. No I/O
of its own but what the reader gives."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Final, NamedTuple

HEADER_LINES_MAX: Final = 64
_VERSIONS: Final = (b"HTTP/1.1", b"HTTP/1.0")


class Page(NamedTuple):
    """What is at a path."""

    status: HTTPStatus
    content_type: str
    body: bytes


Pages = Mapping[str, Callable[[], Awaitable[Page]]]
"""By path."""


def is_http(line: bytes) -> bool:
    """Whether a first line begins a request of HTTP/1."""
    return line.rstrip().endswith(_VERSIONS)


async def respond(line: bytes, reader: asyncio.StreamReader, pages: Pages) -> bytes:
    """Answer the request whose first line was `line`, and whose headers are still to be read."""
    try:
        for _ in range(HEADER_LINES_MAX):
            if not (await reader.readline()).strip():
                break
        else:
            return _response(_words(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"{HEADER_LINES_MAX} do"))
    except ValueError:
        return _response(_words(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "a line is too long"))
    words = line.split()
    if not is_http(line) or len(words) != 3:
        return _response(_words(HTTPStatus.BAD_REQUEST, "expected a line such as GET /metrics HTTP/1.1"))
    method, target, _ = words
    if method not in (b"GET", b"HEAD"):
        return _response(_words(HTTPStatus.METHOD_NOT_ALLOWED, "GET and HEAD do"), b"Allow: GET, HEAD\r\n")
    page = pages.get(target.partition(b"?")[0].decode("latin-1"))
    if page is None:
        return _response(_words(HTTPStatus.NOT_FOUND, f"there are {' and '.join(pages)}"))
    return _response(await page(), with_body=method == b"GET")


def _words(status: HTTPStatus, what: str) -> Page:
    return Page(status, "text/plain; charset=utf-8", f"{status.value} {status.phrase}: {what}\n".encode())


def _response(page: Page, more: bytes = b"", *, with_body: bool = True) -> bytes:
    head = (
        f"HTTP/1.1 {page.status.value} {page.status.phrase}\r\n"
        f"Content-Type: {page.content_type}\r\n"
        f"Content-Length: {len(page.body)}\r\n"
        "Connection: close\r\n"
    )
    return head.encode() + more + b"\r\n" + (page.body if with_body else b"")
