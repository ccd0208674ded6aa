"""The commands that read a capture, on one with a gap: told with line and time, and good only where it was
asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from tests.models.market.captures import is_depth, market, packed

from sigd.bench.commands.bench import bench
from sigd.bench.commands.compare import compare
from sigd.bench.commands.demo import demo
from sigd.bench.commands.replay import replay
from sigd.models.features.catalogue import FEATURE_COUNT

if TYPE_CHECKING:
    from tests.conftest import ModelMaker


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


@pytest.mark.parametrize(("options", "code"), [([], 1), (["--salvage"], 0)])
def test_compare_tells_of_a_gap(gap: Path, models: ModelMaker, options: list[str], code: int) -> None:
    model = str(models.mlp(features=FEATURE_COUNT))
    arguments = [model, model, "--data", str(gap), "--calls", "3", *options]
    ran = CliRunner().invoke(compare, [*arguments, "--json"])
    assert ran.exit_code == code, ran.output
    told = json.loads(ran.stdout)
    assert told["capture_faults"] == {"gap": 1}
    assert told["first_capture_faults"][0]["line"] > 600
    assert ("--salvage takes what is whole" in ran.stderr) == bool(code)
    assert "messages between them are missing" in CliRunner().invoke(compare, arguments).stdout


def test_compare_salvages_a_capture_that_was_cut(tmp_path: Path, models: ModelMaker) -> None:
    content, cut = packed(market()), tmp_path / "cut.gz"
    cut.write_bytes(content[: len(content) * 9 // 10])
    model = str(models.mlp(features=FEATURE_COUNT))
    arguments = [model, model, "--data", str(cut), "--calls", "3", "--json"]
    ran = CliRunner().invoke(compare, [*arguments, "--salvage"])
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout)["capture_faults"]["damaged file"] == 1
    refused = CliRunner().invoke(compare, arguments)
    assert "--salvage takes what is whole" in str(refused.exception)


@pytest.mark.parametrize(("options", "code"), [([], 1), (["--salvage"], 0)])
def test_demo_tells_of_a_gap(gap: Path, options: list[str], code: int) -> None:
    # The gap lies 15 s into the capture, 5 s behind the warm-up.
    ran = CliRunner().invoke(demo, ["--capture", str(gap), "--duration", "6", *options])
    assert ran.exit_code == code, ran.output
    assert "capture  1 gap" in ran.stdout
    assert "messages between them are missing" in ran.stdout
    assert ("--salvage takes what is whole" in ran.stderr) == bool(code)
