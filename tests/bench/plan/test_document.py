"""docs/workstation is what the command writes."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from sigd.bench.commands.plan import plan

WORKSTATION = Path(__file__).resolve().parents[3] / "docs" / "workstation"
PAGE = (WORKSTATION / "README.md").read_text()
WRITTEN = ("README.md", "corrections.md", "figures.md", "memory.svg", "power.svg", "exchange.svg")
PARTS = (
    "Hardware", "Architecture", "Power", "Heat", "Compute", "Language models", "Training",
    "Tensor parallelism, PCIe and NVLink",
    "Trading integration", "TensorRT", "vLLM", "Network", "Verification",
    "Apple Silicon, one RTX 4090, three RTX 3090",
)  # fmt: skip


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workstation")
    result = CliRunner().invoke(plan, ["--markdown", str(folder), str(WORKSTATION / "machine.toml")])
    assert result.exit_code == 0, result.output
    return folder


@pytest.mark.parametrize("name", WRITTEN)
def test_document_is_what_the_command_writes(fresh: Path, name: str) -> None:
    """Where this fails: sigd plan --markdown docs/workstation docs/workstation/machine.toml"""
    assert (WORKSTATION / name).read_text() == (fresh / name).read_text()


def test_nothing_else_is_written(fresh: Path) -> None:
    assert sorted(path.name for path in fresh.iterdir()) == sorted(WRITTEN)


def test_page_has_its_fourteen_parts() -> None:
    assert re.findall(r"^## \d+\. (.*)$", PAGE, re.MULTILINE) == list(PARTS)
    assert "{{" not in PAGE


@pytest.mark.parametrize("name", [name for name in WRITTEN if name.endswith(".svg")])
def test_plot_is_well_formed(name: str) -> None:
    root = ElementTree.fromstring((WORKSTATION / name).read_text())
    assert root.tag.endswith("svg")
    assert len(root) > 10


def test_corrections_have_every_claim() -> None:
    numbers = re.findall(r"^\| (\d+) \|", (WORKSTATION / "corrections.md").read_text(), re.MULTILINE)
    assert numbers == [str(number) for number in range(1, 51)]
