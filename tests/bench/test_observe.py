"""What being watched costs: what is compared, what makes a run fail, and the whole of it on a small scale."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from tests.bench.measurements import measured

from sigd.bench.commands.observe import asked_of, main
from sigd.bench.load.native import NativeLoad
from sigd.bench.observe import Asked, Found, Round, measure
from sigd.wire.ring import why_not_here

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import ModelMaker

    from sigd.bench.native.build import NativePrograms


def asked(transport: str = "stream") -> Asked:
    return asked_of(rounds=2, seconds=0.1, transport=transport, model=None, idle="block")


def found(*rounds: tuple[float, float], dropped: int = 0) -> Found:
    return Found(asked(), tuple(Round(measured(off), measured(on)) for off, on in rounds), 100, dropped)


def test_neighbours_are_compared_and_one_disturbed_round_does_not_decide() -> None:
    run = found((10, 11), (20, 22), (10, 900))
    assert run.ratios() == pytest.approx([1.1, 1.1], rel=0.01)
    assert run.longer_ns() == pytest.approx([2000, 2000], rel=0.02)
    assert [off[0] for off in run.pooled_ns()] == pytest.approx([10_000, 22_000], rel=0.01)
    assert run.reasons() == []


def test_requests_that_were_not_recorded_prove_nothing() -> None:
    (reason,) = found((10, 11), dropped=3).reasons()
    assert reason.startswith("3 requests found no room in the recorder's ring")


@pytest.mark.parametrize("transport", ["stream", "shm"])
def test_the_whole_of_it_on_a_small_scale(programs: NativePrograms, transport: str) -> None:
    if transport == "shm" and why_not_here():
        pytest.skip(why_not_here())
    said: list[str] = []
    run = measure(asked(transport), NativeLoad(programs), said.append)
    assert said[1:] == ["round 1 of 2", "round 2 of 2"]
    assert run.reasons() == []
    assert run.recorded > sum(turns.on.received for turns in run.rounds), "those of the warm-up as well"
    assert all(turns.off.received > 0 for turns in run.rounds)


def test_the_command(
    programs: NativePrograms, models: ModelMaker, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ["--rounds", "1", "--seconds", "0.1", "--idle", "block", "--model", str(models.mlp())]
    options += ["--html", str(tmp_path / "o.html")]
    result = CliRunner().invoke(main, options)
    assert result.exit_code in (0, 1), result.stderr
    assert "metrics and recorder" in capfd.readouterr().out, "in one process"
    assert "us from send to answer" in result.stdout, "and from outside"
    assert "FAILED" not in result.stdout
    assert json.loads((tmp_path / "o.json").read_text())["rounds"] == 1
    assert (tmp_path / "o-hgrm" / "recorder.hgrm").is_file()
    assert (tmp_path / "o.html").read_text().count("<svg") == 1


def test_what_cannot_be_served_is_told(tmp_path: Path) -> None:
    assert CliRunner().invoke(main, ["--model", str(tmp_path / "none.onnx")]).exit_code == 2
