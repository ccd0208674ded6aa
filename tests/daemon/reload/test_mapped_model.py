"""The bytes of a model through a file of memory: what comes out is what went in, and nothing is left
behind."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigd.daemon.reload import mapped_model
from sigd.daemon.reload.mapped_model import MappedModel, on_a_page, write_model
from sigd.models.onnx.parts import OnnxParts

PAGE = mmap.PAGESIZE
around_pages = st.builds(
    lambda pages, beside: max(0, pages * PAGE + beside), st.integers(0, 3), st.integers(-2, 2)
)


def written(graph: bytes, weights: bytes) -> MappedModel:
    return MappedModel(write_model(OnnxParts(graph, weights)), len(graph), len(weights))


def descriptors() -> int:
    """Open files of memory that hold a model."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the listing's own
            found += "memfd:sigd-model" in os.readlink(f"/proc/self/fd/{name}")
    return found


def bytes_of(size: int, first: int) -> bytes:
    return bytes((first + number * 7) % 251 for number in range(size))


@given(graph_bytes=around_pages.filter(bool), weights_bytes=around_pages)
def test_both_parts_come_back(graph_bytes: int, weights_bytes: int) -> None:
    graph, weights = bytes_of(graph_bytes, 1), bytes_of(weights_bytes, 2)
    before = descriptors()
    model = written(graph, weights)
    for _ in range(2):
        with model.mapped() as parts:
            assert parts.graph == graph
            assert bytes(parts.weights) == weights
    assert descriptors() == before + 1
    del model
    assert descriptors() == before


def test_a_large_one_is_mapped_without_pythons_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(*_: object) -> None:
        raise AssertionError("the loop would wait")

    monkeypatch.setattr(mapped_model, "KEEPING_LOCK", kept)
    weights = bytes(mapped_model._LARGE_BYTES)
    with written(b"graph", weights).mapped() as parts:
        assert parts.weights == weights


def test_nothing_stays_mapped_whatever_happens_inside() -> None:
    def mappings() -> int:
        with open("/proc/self/maps") as maps:
            return sum("memfd:sigd-model" in line for line in maps)

    model = written(b"graph", b"weights")
    inside = []

    def fail() -> None:
        with model.mapped():
            inside.append(mappings())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert inside == [1]
    assert mappings() == 0


def test_no_room_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        """A C library on a machine without memory."""

        def mmap(self, *_: Any) -> int | None:
            ctypes.set_errno(errno.ENOMEM)
            return mapped_model._MAP_FAILED

    monkeypatch.setattr(mapped_model, "KEEPING_LOCK", Full())
    with pytest.raises(MemoryError, match="Cannot allocate memory"), written(b"graph", b"").mapped():
        pass


@pytest.mark.parametrize(("size", "pages"), [(0, 0), (1, 1), (PAGE - 1, 1), (PAGE, 1), (PAGE + 1, 2)])
def test_whole_pages(size: int, pages: int) -> None:
    assert on_a_page(size) == pages * PAGE
