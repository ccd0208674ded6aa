"""`sigd/engine.hpp`: an engine file in the caller's own process, with the bits of the daemon."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.wire.cpp.conftest import DaemonProcess

import sigd.models.native
from sigd.models.build.pipeline import build_engine
from sigd.models.build.request import BuildRequest
from sigd.models.engine import read_manifest
from sigd.models.native.backend import kernels, kernels_are_built
from sigd.models.rows import seeded_rows
from sigd.models.spec import read_spec
from sigd.wire.client import connect
from sigd.wire.schema.cpp_header import package_dir

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
    from tests.wire.conftest import CppBuilder

LIBRARY = Path(sigd.models.native.__file__).resolve().parent / "libsigd_engine.so"
pytestmark = pytest.mark.skipif(
    not (kernels_are_built() and LIBRARY.exists()),
    reason="the native kernels are not built: python hatch_build.py",
)
ROWS = 23


@pytest.fixture(scope="session")
def engine(models: ModelMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A native engine with its manifest."""
    path = tmp_path_factory.mktemp("engine") / "m.engine"
    build_engine(BuildRequest(model=models.mlp(hidden=(96, 20)), engine=path, runtime="native"))
    return path


@pytest.fixture(scope="session")
def rows(models: ModelMaker) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """What is asked."""
    return seeded_rows(read_spec(models.mlp(hidden=(96, 20))), ROWS, seed=3)


def in_process(program: Path, content: bytes, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    """The example, given rows."""
    return subprocess.run(
        [program, *map(str, arguments)], input=content, capture_output=True, timeout=60, check=False
    )


@pytest.fixture(scope="session")
def program(cpp: CppBuilder) -> Path:
    """The example, linked as a user links it."""
    where = f"-Wl,-rpath,{LIBRARY.parent}"
    return cpp.build(package_dir() / "examples" / "in_process.cpp", "-O2", str(LIBRARY), where)


def test_engine_in_process_gives_the_bits_of_the_daemon(
    program: Path, engine: Path, rows: np.ndarray[tuple[int, int], np.dtype[np.float32]], tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-P",
        "-m",
        "sigd.daemon",
        "serve",
        "--socket",
        "SOCKET",
        "--model",
        str(engine),
    ]
    daemon = DaemonProcess(tmp_path, command)
    daemon.start()
    try:
        with connect(daemon.path, client_name="bits") as client:
            answers = b"".join(client.request(row).outputs.tobytes() for row in rows)
    finally:
        daemon.end(signal.SIGKILL)
    for rows_max in (1, 7, ROWS):
        done = in_process(program, rows.tobytes(), engine, rows_max)
        assert (done.returncode, done.stdout) == (0, answers), done.stderr
    for name in kernels().instruction_sets():
        done = in_process(program, rows.tobytes(), engine, 4, name)
        assert name in done.stderr.decode()
        assert (done.returncode, done.stdout) == (0, answers), name


def test_file_that_is_no_engine_is_refused_with_the_cure(program: Path, engine: Path, tmp_path: Path) -> None:
    done = in_process(program, b"", "/no/such.engine")
    assert (done.returncode, b"cannot be read: No such file" in done.stderr) == (1, True)
    wrong = tmp_path / "wrong.engine"
    wrong.write_bytes(b"ONNX" * 50)
    done = in_process(program, b"", wrong)
    assert done.returncode == 1
    assert b"does not begin with sigdplan): sigd build-engine --runtime native" in done.stderr
    wrong.write_bytes(engine.read_bytes()[:-64])
    assert in_process(program, b"", wrong).returncode == 1
    assert b"expected a regular file" in in_process(program, b"", tmp_path).stderr
    assert b"does not have the instruction set sse9" in in_process(program, b"", engine, 1, "sse9").stderr


PINNED = """
#include <cstdio>
#include <cstring>
#include <vector>
#include <sigd/engine.hpp>

int main(int, char** words) {
    sigd::Engine engine;
    std::vector<float> row(1), answer(1);
    if (engine.run(row, answer) != sigd::Errc::not_connected) return 1;
    if (engine.open({.path = words[1], .rows_max = 0}) != sigd::Errc::invalid_argument) return 2;
    if (engine.open({.path = words[1], .rows_max = 3}) != sigd::Errc::none) return 3;
    const auto digest = engine.sha256();
    for (const auto byte : digest) std::printf("%02x", byte);
    row.assign(std::size_t{engine.features()} * 4, 0.5F);
    answer.assign(std::size_t{engine.outputs()} * 4, 0.0F);
    if (engine.run(row, answer) != sigd::Errc::invalid_argument) return 4;
    if (engine.run({}, {}) != sigd::Errc::invalid_argument) return 5;
    row.resize(engine.features());
    if (engine.run(row, answer) != sigd::Errc::invalid_argument) return 6;
    answer.resize(engine.outputs());
    if (engine.run(row, answer) != sigd::Errc::none) return 7;
    auto other = digest;
    other[31] ^= 1;
    if (engine.open({.path = words[1], .sha256 = other.data()}) != sigd::Errc::wrong_model) return 8;
    if (engine.features() != 0 || std::strstr(engine.error().text, "digest") == nullptr) return 9;
    if (engine.open({.path = words[1], .sha256 = digest.data()}) != sigd::Errc::none) return 10;
    return engine.rows_max() == 1 ? 0 : 11;
}
"""


def test_engine_says_its_digest_and_takes_no_other(cpp: CppBuilder, engine: Path, tmp_path: Path) -> None:
    source = tmp_path / "pinned.cpp"
    source.write_text(PINNED)
    flags = ("-fno-exceptions", "-fno-rtti", str(LIBRARY), f"-Wl,-rpath,{LIBRARY.parent}")
    done = in_process(cpp.build(source, *flags), b"", engine)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == read_manifest(engine).plan.sha256
