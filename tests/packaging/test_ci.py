"""What CI installs before it runs the tests: each package on its own, and all that tests skip without."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / ".ci" / "run"
STUBS = {
    "id": "echo ${TEST_UID}",
    "apt-get": 'echo "$@" >> "$TEST_LOG"; case " $TEST_MISSING " in *" ${@: -1} "*) exit 100 ;; esac',
    "clang": "echo 17.0.6",
    "make": "exit 9",  # what comes behind is for another day
}


def begun(folder: Path, user: int, missing: str = "") -> tuple[list[str], str]:
    """The packages that it installs as that user before it comes to `make`, and what it says."""
    (folder / ".ci").mkdir()
    shutil.copy(SCRIPT, folder / ".ci" / "run")
    for name, body in STUBS.items():
        stub = folder / "bin" / name
        stub.parent.mkdir(exist_ok=True)
        stub.write_text(f"#!/usr/bin/env bash\n{body}\n")
        stub.chmod(0o755)
    log = folder / "log"
    log.touch()
    environment = {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "TEST_UID": str(user),
        "TEST_LOG": str(log),
        "TEST_MISSING": missing,
    }
    done = subprocess.run(
        ["bash", folder / ".ci" / "run"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 9, done.stderr
    assert done.stdout == ""
    lines = log.read_text().splitlines()
    installs = [line.split() for line in lines if line.startswith("install ")]
    assert all([word.startswith("-") for word in words] == [False, True, True, False] for words in installs)
    return [words[-1] for words in installs], done.stderr


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What root installs where everything can be had."""
    installed, said = begun(tmp_path_factory.mktemp("ci"), 0)
    assert said == ""
    return installed


def test_all_that_tests_ask_for_is_installed(packages: list[str]) -> None:
    asked: set[str] = set()
    for file in (ROOT / "tests").rglob("*.py"):
        text = file.read_text("utf-8")
        asked |= set(re.findall(r"Debian: apt install ([\w+-]+)", text))
        for programs in re.findall(r"\bneed\((\"[^)]*)\)", text):
            asked |= set(re.findall(r"\"([\w+-]+)\"", programs))
    assert {"cmake", "liburing-dev", "prometheus"} <= asked
    assert asked - {"make"} <= set(packages), "make is what .ci/run itself begins with"


def test_sanitizers_are_those_of_the_compiler(packages: list[str]) -> None:
    assert packages[-1] == "libclang-rt-17-dev"


def test_what_cannot_be_had_is_named_and_takes_nothing_with_it(tmp_path: Path, packages: list[str]) -> None:
    installed, said = begun(tmp_path, 0, "cmake prometheus")
    assert installed == packages
    assert said == "not installed: cmake prometheus; the tests that need it will say so\n"


def test_without_root_nothing_is_installed(tmp_path: Path) -> None:
    assert begun(tmp_path, 1000) == ([], "")
