"""`sigd replay` and `sigd bench --capture` of a capture with a gap: told, and good only where it was asked
for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.models.market.captures import is_depth, market, packed

from sigd.bench.commands.bench import bench
from sigd.bench.commands.replay import replay


@pytest.fixture(scope="module")
def gap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lines = market()
    del lines[[number for number, line in enumerate(lines) if is_depth(line)][300]]
    path = tmp_path_factory.mktemp("captures") / "gap.gz"
    path.write_bytes(packed(lines))
    return path


@pytest.mark.parametrize(("options", "code"), [([], 1), (["--salvage"], 0)])
def test_replay_tells_of_a_gap(gap: Path, options: list[str], code: int) -> None:
    ran = CliRunner().invoke(replay, [str(gap), "--speed", "max", "--json", *options])
    assert ran.exit_code == code, ran.output
    summary = json.loads(ran.stdout)
    assert summary["capture_faults"] == {"gap": 1}
    assert summary["first_capture_faults"][0]["line"] > 600
    assert ("--salvage takes what is whole" in ran.stderr) == bool(code)


def test_replay_names_the_line_of_a_gap(gap: Path) -> None:
    ran = CliRunner().invoke(replay, [str(gap), "--speed", "max", "--salvage"])
    assert "capture  1 gap" in ran.stdout
    assert "messages between them are missing" in ran.stdout


@pytest.mark.parametrize(("options", "valid"), [([], False), (["--salvage"], True)])
def test_bench_is_valid_with_a_gap_only_where_that_was_asked_for(
    gap: Path, options: list[str], valid: bool
) -> None:
    arguments = ["--no-p99", "--capture", str(gap), "--speed", "20", "--warmup", "0.1", "--client", "python"]
    ran = CliRunner().invoke(bench, [*arguments, "--json", "-", *options])
    document = json.loads(ran.stdout)
    assert document["capture"]["faults"] == {"gap": 1}
    assert document["capture"]["first_faults"][0]["kind"] == "gap"
    told = [reason for reason in document["reasons"] if reason.startswith("the capture is not whole (1 gap)")]
    assert bool(told) is not valid
