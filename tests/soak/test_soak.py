"""The soak itself, short: a daemon that is killed once and drained once."""

from __future__ import annotations

import os
import shutil

import pytest
from tests.soak.soak import run

from sigd.wire.ring import why_not_here


@pytest.mark.slow
def test_every_number_is_accounted_for() -> None:
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("needs a C++ compiler (Debian: apt install g++)")
    if why_not_here():
        pytest.skip(why_not_here())
    ends, said = run(1_000_000, kill_every_s=0.3, backend="echo", ends_max=2)
    assert ends >= 1
    for tally in said.values():
        assert tally["exit_code"] == 0
        assert tally["sent"] == tally["answered"] + tally["lost"] == 500_000
        assert tally["lost"] <= ends * 64
