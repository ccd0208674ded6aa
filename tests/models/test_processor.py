"""Instruction sets as Linux tells them."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from sigd.models.processor import instruction_sets


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "processor\t: 0\nflags\t\t: fpu sse2 avx2 avx512f avx512_vnni\n\nflags\t\t: avx2\n",
            "avx2 avx512f avx512_vnni",
        ),
        ("Features\t: fp asimd sve i8mm\n", "asimd i8mm sve"),
        ("flags\t\t: fpu sse2\n", ""),
        ("", ""),
    ],
)
def test_only_what_matters_is_named(tmp_path: Path, text: str, expected: str) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(text)
    assert instruction_sets(cpuinfo) == f"{platform.machine()} {expected}".strip()
