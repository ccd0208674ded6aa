"""`sigd plan`: its output, its exit codes, and what it says of a file that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sigd.bench.commands.plan import plan

WORKSTATION = Path(__file__).resolve().parents[3] / "docs" / "workstation"
MACHINE = WORKSTATION / "machine.toml"
SMALL = 'name = "small"\n[[cards]]\nmodel = "RTX 3090"\n'


def run(*arguments: str) -> Result:
    return CliRunner().invoke(plan, list(arguments))


def written(folder: Path, text: str) -> str:
    path = folder / "machine.toml"
    path.write_text(text)
    return str(path)


def test_the_planned_machine_does_not_fit_and_the_worst_comes_first() -> None:
    result = run(str(MACHINE))
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert max(map(len, lines)) <= 80
    first = next(line for line in lines if line.startswith(" 1."))
    assert "battery" in first
    assert "sigd on card 0" in next(line for line in lines if line.startswith(" 2."))


def test_all_lists_every_verdict_at_80_columns() -> None:
    lines = run("--all", str(MACHINE)).output.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("fits ") for line in lines)


def test_json_has_the_same_verdicts() -> None:
    document = json.loads(run("--json", str(MACHINE)).output)
    assert document["fits"] is False
    assert document["price_usd"] == 5694
    assert {one["level"] for one in document["verdicts"]} == {"fits", "tight", "does not fit"}
    assert all(one["fix"] for one in document["change"])


def test_a_machine_that_fits_ends_with_0(tmp_path: Path) -> None:
    text = SMALL + (
        '[[work]]\nname = "8B"\nkind = "serve"\nmodel = "llama-3.1-8b"\nweights = "awq"\ncards = [0]\nwanted'
        " = 30\n"
    )
    result = run(written(tmp_path, text))
    assert result.exit_code == 0, result.output
    assert "it fits" in result.output


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name = "x"\n', "cards"),
        ('name = "x"\ncards = []\n', "expected one at least"),
        (SMALL.replace("3090", "9999"), "'RTX 9999' is not known: expected one of"),
        (SMALL + "limit = 3\n", "limit"),
        (SMALL + "limit_w = -3\n", "above 0"),
        (
            SMALL + '[[work]]\nname = "w"\nkind = "serve"\nmodel = "gpt-9"\ncards = [0]\n',
            "'gpt-9' is not known",
        ),
        (SMALL + '[[work]]\nname = "w"\nkind = "mlp"\ncards = [1]\n', "expected one or more of [0]"),
        (SMALL + '[[work]]\nname = "w"\nkind = "mlp"\ncards = [0, 0]\n', "each once"),
        (SMALL + '[board]\nmodel = "Z99"\n', "board 'Z99'"),
        ("name = \n", "machine.toml"),
    ],
)
def test_a_wrong_file_ends_with_2_and_says_what_was_expected(tmp_path: Path, text: str, said: str) -> None:
    result = run(written(tmp_path, text))
    assert result.exit_code == 2
    assert said in result.output


def test_a_missing_file_ends_with_2(tmp_path: Path) -> None:
    result = run(str(tmp_path / "none.toml"))
    assert result.exit_code == 2
    assert "No such file" in result.output
