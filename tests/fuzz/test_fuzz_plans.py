"""Some thousand damaged plans; `make fuzz` tries a million."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from tests.fuzz.fuzz_plans import fuzz, seeds

from sigd.models.native.backend import kernels, kernels_are_built


@pytest.mark.skipif(not kernels_are_built(), reason="the native kernels are not built")
def test_seed_plans_are_whole() -> None:
    for plan in seeds():
        assert kernels().load(plan).outputs


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("gcc") or shutil.which("clang")), reason="there is no C compiler")
def test_damaged_plans_never_leave_their_memory(tmp_path: Path) -> None:
    said = fuzz(20_000, 7, tmp_path, inlined=False)
    refused, ran, slid = map(int, re.findall(r"(\d+) (?:refused|ran|by steps)", said))
    assert refused > 5_000
    assert ran > 500
    assert slid > 100
