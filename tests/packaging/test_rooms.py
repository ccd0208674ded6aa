"""The directions of imports between rooms: none runs up, and each contract breaks on a planted import."""

from __future__ import annotations

import shutil
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest
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


@pytest.mark.slow
@pytest.mark.parametrize("file", PLANTED)
def test_contract_breaks_on_planted_import(tmp_path: Path, file: str) -> None:
    for folder in ("daemon", "models", "wire", "bench", "systemd"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / ".src", tmp_path / ".src", symlinks=True)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    target = tmp_path / file
    target.write_text(target.read_text() + f"\n{PLANTED[file]}\n")
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
    assert "BROKEN" in done.stdout
