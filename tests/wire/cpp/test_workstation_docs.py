"""docs/workstation: its pieces of C++ compile, and its two clients get the same signal."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.wire.conftest import CppBuilder
    from tests.wire.cpp.conftest import DaemonProcess

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "workstation" / "README.md").read_text("utf-8")
CPP = re.findall(r"```cpp\n(.*?)```", PAGE, re.DOTALL)
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
CALL = """
import sys

with connect(sys.argv[1]) as client:
    features = [0.0] * client.welcome.features
for output in signal(sys.argv[1], features):
    print(output)
"""


def outputs(*command: str) -> list[float]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return [float(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("block", CPP, ids=range(len(CPP)))
def test_every_piece_compiles(cpp: CppBuilder, tmp_path: Path, block: str) -> None:
    source = tmp_path / "piece.cpp"
    source.write_text(block)
    cpp.check(source, "-fno-exceptions", "-fno-rtti", compiler="g++", standard="c++20")


def test_both_clients_get_the_same_signal(
    cpp: CppBuilder, live_daemon: DaemonProcess, tmp_path: Path
) -> None:
    (program,) = [block for block in CPP if "int main" in block]
    source = tmp_path / "engine.cpp"
    source.write_text(program)
    in_cpp = outputs(str(cpp.build(source)), live_daemon.path)
    (piece,) = PYTHON
    script = tmp_path / "engine.py"
    script.write_text(piece + CALL)
    assert len(in_cpp) == 3
    assert outputs(sys.executable, "-P", str(script), live_daemon.path) == pytest.approx(in_cpp, rel=1e-5)
