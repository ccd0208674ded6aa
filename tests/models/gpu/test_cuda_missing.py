"""What is said where the packages or the driver that CUDA takes are not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_LINES = (
    "from sigd.models.gpu.cuda import gpu_facts",
    "from sigd.models.errors import BackendUnavailable",
    "try:",
    "    gpu_facts(0)",
    "except BackendUnavailable as error:",
    "    print(error)",
)


def said(folder: Path) -> str:
    """What is said with the packages in `folder` and no others of that name."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", "\n".join(_LINES)],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("No module named 'pycuda'", "pip install 'sigd[gpu]' (PyCUDA is compiled"),
        ("libcuda.so.1: cannot open shared object file", "the NVIDIA driver is not installed here"),
    ],
)
def test_a_package_that_cannot_be_imported_says_what_is_missing(
    tmp_path: Path, error: str, words: str
) -> None:
    (tmp_path / "pycuda").mkdir()
    (tmp_path / "pycuda" / "__init__.py").write_text("")
    (tmp_path / "pycuda" / "driver.py").write_text(f"raise ImportError({error!r})")
    assert words in said(tmp_path)
    assert error in said(tmp_path)
