"""Each attack on the rings a few times, against a daemon of each idle strategy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.fuzz.fuzz_rings import run
from tests.fuzz.ring_attacks import ATTACKS

from sigd.wire.ring import why_not_here

if TYPE_CHECKING:
    from tests.conftest import ModelMaker

pytestmark = pytest.mark.skipif(bool(why_not_here()), reason=why_not_here())


@pytest.mark.parametrize("idle", ["spin", "backoff", "block"])
def test_a_hostile_client_harms_nobody_else(models: ModelMaker, idle: str) -> None:
    rounds = 3
    found = run(rounds * len(ATTACKS), idle, seed=7, model=models.mlp(features=8, outputs=3))
    assert (found.leaked_descriptors, found.leaked_mappings, found.exit_code) == (0, 0, 0)
    assert all(len(times) == rounds for times in found.after_us.values())
    assert {code for _, code in found.codes} == {-1, 2, 3, 9}
