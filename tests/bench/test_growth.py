"""How the cost grows: each axis has a figure for each of its values, and the command shows them."""

from __future__ import annotations

import msgspec
import pytest
from click.testing import CliRunner

from sigd.bench import growth
from sigd.bench.commands.growth import _AXES, main
from sigd.bench.growth import AXES, Growth
from sigd.bench.verdict import INCONCLUSIVE_EXIT_CODE


def test_the_command_offers_every_axis() -> None:
    assert tuple(AXES) == _AXES == tuple(growth._WAYS)


@pytest.mark.slow
def test_each_value_has_a_figure(monkeypatch: pytest.MonkeyPatch, programs: object) -> None:
    few = {"in-flight": ("in flight", (1, 8)), "features": ("features", (8, 64)), "batch": ("rows", (1, 4))}
    monkeypatch.setattr(growth, "AXES", few)
    chosen = [word for name in few for word in ("--axis", name)]
    done = CliRunner().invoke(main, [*chosen, "--seconds", "0.1", "--json"])
    assert done.exit_code in (0, INCONCLUSIVE_EXIT_CODE), done.output
    found = msgspec.json.decode(done.stdout, type=Growth)
    assert [(axis.name, [point.value for point in axis.points]) for axis in found.axes] == [
        (name, list(values)) for name, (_, values) in few.items()
    ]
    for axis in found.axes:
        for point in axis.points:
            assert point.disturbed or 0 < point.p50_us <= point.p99_us
            assert point.disturbed or point.per_s > 0
