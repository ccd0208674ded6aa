"""Denormals flushed on the calling thread, and on no other."""

from __future__ import annotations

import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from sigd.models import denormals
from sigd.models.denormals import denormals_flushed, float_environment_kept, flush_denormals
from sigd.models.errors import BackendUnavailable


def in_new_thread(call: Callable[[], bool]) -> bool:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def flush_and_ask() -> bool:
    flush_denormals()
    return denormals_flushed()


def test_flushing_takes_effect_whenever_it_is_called() -> None:
    assert not denormals_flushed()
    flush_denormals()
    assert denormals_flushed()
    flush_denormals()
    assert denormals_flushed()


def test_the_setting_is_each_threads_own() -> None:
    assert in_new_thread(flush_and_ask)
    assert not denormals_flushed()


def test_a_thread_started_later_inherits_it() -> None:
    flush_denormals()
    assert in_new_thread(denormals_flushed)


def test_the_environment_is_put_back_even_after_an_error() -> None:
    def fail() -> None:
        with float_environment_kept():
            flush_denormals()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not denormals_flushed()


@pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the two halves of the setting are bits of x86-64's MXCSR"
)
@pytest.mark.parametrize("bit", [6, 15])
def test_half_of_the_setting_is_told_from_the_whole(monkeypatch: pytest.MonkeyPatch, bit: int) -> None:
    """Flushing results but not operands, or the other way round, leaves the slow path open."""
    monkeypatch.setitem(denormals._FLUSH_BITS, "x86_64", (7, 1 << bit))
    with pytest.raises(BackendUnavailable, match="cannot be flushed to zero on x86_64"):
        flush_denormals()


def test_an_unknown_processor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(BackendUnavailable, match=r"on riscv64 .*run on x86-64 or AArch64"):
        flush_denormals()


def test_an_unknown_processor_that_flushes_already_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    flush_denormals()
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    flush_denormals()
