"""What tests need that build C with gcc's sanitizers."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest


def empty_program(folder: Path, flags: Sequence[str]) -> Path:
    """A program that does nothing, built with these flags. The test is skipped where gcc has none of them."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc (Debian: apt install g++)")
    source, program = folder / "empty.c", folder / "empty"
    source.write_text("int main(void) { return 0; }\n")
    done = subprocess.run(
        ["gcc", *flags, "-o", str(program), str(source)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"gcc has no sanitizers here: {done.stderr.strip().splitlines()[-1]}")
    return program
