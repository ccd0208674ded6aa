"""The directions of imports between rooms: none runs up, and each contract breaks on a planted import."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
from tests.rooms import ROOT, imports_between_rooms, runs_up

PLANTED = {
    "wire/framer.py": "from sigd.models import errors",
    "models/backend.py": "from sigd.daemon import errors",
    "daemon/config/limits.py": "from sigd.daemon.runtime import logs",
    "daemon/serving/session.py": "from sigd.daemon.transport import listener",
    "daemon/recording/tap.py": "from sigd.daemon.admin import messages",
    "models/onnx/file.py": "from sigd.models import registry",
    "wire/layout.py": "from sigd.wire.client import client",
    "bench/load/contract.py": "from sigd.bench.market import demo",
    "bench/market/demo.py": "from sigd.daemon.serving import batcher",
    "wire/inbox.py": "import socket",
    "daemon/service.py": "from sigd.bench import histogram",
    "bench/plan/claims.py": "from sigd.models import errors",
}
"""File to an import that a contract forbids."""


def test_no_import_runs_up() -> None:
    wrong = [(a, b) for a, imported in imports_between_rooms().items() for b in imported if runs_up(a, b)]
    assert wrong == []


def test_no_modules_of_the_daemon_import_each_other() -> None:
    graph = grimp.build_graph("sigd", exclude_type_checking_imports=True)
    TopologicalSorter(
        {
            module: graph.find_modules_directly_imported_by(module)
            for module in graph.modules
            if module.startswith("sigd.daemon.")
        }
    ).prepare()


def test_every_contract_breaks_on_a_planted_import(tmp_path: Path) -> None:
    for folder in ("daemon", "models", "wire", "bench", "systemd"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / ".src", tmp_path / ".src", symlinks=True)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for file, planted in PLANTED.items():
        target = tmp_path / file
        target.write_text(target.read_text() + f"\n{planted}\n")
    command = [sys.executable, "-P", "-c", "from importlinter.cli import lint_imports_command as c; c()"]
    done = subprocess.run(
        [*command, "--no-cache"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / ".src"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Contracts: 0 kept, " in done.stdout, done.stdout
    # Each by itself: a chain that begins with the planted import, and not one that leads through it.
    found = set(re.findall(r"^-\s+(\S+ -> \S+) \(l\.\d+\)$", done.stdout, re.MULTILINE))
    assert {_as_link(file, planted) for file, planted in PLANTED.items()} - found == set(), done.stdout


def _as_link(file: str, planted: str) -> str:
    """A planted import in the words of the linter."""
    importer = "sigd." + file.removesuffix(".py").replace("/", ".")
    return f"{importer} -> {planted.removeprefix('from ').removeprefix('import ').replace(' import ', '.')}"
