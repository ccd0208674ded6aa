"""The tests of the extensions in C, with the extensions built with sanitizers: a finding ends them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fuzz import sanitized

from sigd.models.native.backend import kernels_are_built

# Each with its tests, without those that measure (a sanitizer slows one side) and those that take long.
EXTENSIONS = {
    "_fast_path": ("daemon/serving/test_native_fast_path.py", "not one_by_one and not lane"),
    "_lane": (
        "daemon/transport/test_lanes.py",
        "lost_in or no_lane_runs or outside",
    ),
    "_stream": (
        "models/features/test_native_stream.py",
        "quotients or wide or beyond or past or outside",
    ),
}


@pytest.mark.slow
@pytest.mark.skipif(not kernels_are_built(), reason="the C extensions are not built: python hatch_build.py")
@pytest.mark.parametrize("name", EXTENSIONS)
def test_sanitizers_find_nothing_in_the_extension(name: str, tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    try:
        module = sanitized.build(name, tmp_path, "gcc").stem
    except subprocess.CalledProcessError as error:
        if "sanitize" in error.stderr or "asan" in error.stderr:
            pytest.skip(f"gcc has no sanitizers here: {error.stderr.strip().splitlines()[-1]}")
        raise
    file, chosen = EXTENSIONS[name]
    options = {
        "LD_PRELOAD": sanitized.runtime("gcc"),
        "PYTHONMALLOC": "malloc",
        sanitized.PLACE: str(tmp_path),
    }
    options |= {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    words = ["-m", "pytest", "-q", "-p", "tests.fuzz.sanitized", "-p", "no:cacheprovider", f"tests/{file}"]
    done = subprocess.run(
        [sys.executable, *words, "-m", "not slow", "-k", chosen, "-v", "-x"],
        cwd=sanitized.ROOT,
        env={**os.environ, **options},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert f"sanitized: {module}\n" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout
