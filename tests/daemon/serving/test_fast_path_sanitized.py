"""The fast path in C under AddressSanitizer and UBSan: tests of it once more, in a process that ends with a
report at the first finding."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from tests.sanitizers import empty_program

ROOT = Path(__file__).resolve().parents[3]
MODULES = (
    "tests/daemon/serving/test_receive_round.py",
    "tests/daemon/serving/test_native_fast_path.py",
    "tests/daemon/serving/test_sliding_steps.py",
    "tests/daemon/transport/test_rings.py",
)
RUN = """
import importlib.util, sys
name = "sigd.daemon.serving._fast_path"
spec = importlib.util.spec_from_file_location(name, sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
import pytest
from sigd.daemon.serving import native_fast_path
assert native_fast_path.Path is module.Path
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[2:]]))
"""


@pytest.mark.slow
def test_fast_path_in_c_has_nothing_to_report(tmp_path: Path) -> None:
    flags = (
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        "-g",
        "-O1",
        "-fno-omit-frame-pointer",
    )
    empty_program(tmp_path, flags)
    library = tmp_path / "_fast_path.abi3.so"
    source = ROOT / "daemon" / "serving" / "fast_path.c"
    include = [f"-I{sysconfig.get_paths()['include']}", f"-I{ROOT / 'models' / 'native'}"]
    subprocess.run(
        ["gcc", "-std=gnu11", "-fPIC", "-shared", *flags, *include, "-o", str(library), str(source)],
        check=True,
    )
    # The interpreter is not built with the sanitizers, so they have to be there before it.
    runtime = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    environment = os.environ | {
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",  # the interpreter's own memory lives to the end
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "PYTHONMALLOC": "malloc",  # each object is a block of its own, with its edges watched
    }
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            RUN,
            str(library),
            *MODULES,
            "-k",
            "not python and not asynchronous and not lane",
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout
