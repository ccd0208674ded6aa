"""Fixtures for the tests of the wire: one way to feed a reader in every cut, and a maker of frames."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import pytest
from tests.workers import folder_of_all_workers, locked

from sigd.wire import fields
from sigd.wire.layout import frame_dtype, request_frame_bytes
from sigd.wire.messages import Heartbeat
from sigd.wire.schema.cpp_header import include_dir


class Reader(Protocol):
    """What takes bytes in: Framer, RequestInbox, ResponseInbox."""

    def writable(self) -> memoryview:
        """Where the next bytes belong."""

    def arrived(self, count_bytes: int) -> None:
        """They are there."""


R = TypeVar("R", bound=Reader)
T = TypeVar("T")


def _deliver(reader: Reader, data: bytes) -> None:
    while data:
        room = reader.writable()
        assert len(room), "the reader has no room, and nothing that would make any"
        part = data[: len(room)]
        room[: len(part)] = part
        reader.arrived(len(part))
        data = data[len(part) :]


def _three_ways(
    make: Callable[[], R],
    take: Callable[[R], list[T]],
    data: bytes,
    arrange: Callable[[list[T]], list[T]] = list,
) -> list[T]:
    whole = make()
    _deliver(whole, data)
    items = arrange(take(whole))
    assert take(whole) == [], "everything was taken at once"

    bytewise = make()
    one_by_one = []
    for index in range(len(data)):
        _deliver(bytewise, data[index : index + 1])
        one_by_one += take(bytewise)
    assert arrange(one_by_one) == items

    trailed = make()
    tail = Heartbeat(0x0102030405060708).encode()
    _deliver(trailed, data + tail[:9])
    assert arrange(take(trailed)) == items
    _deliver(trailed, tail[9:])
    assert len(take(trailed)) == 1, "the frame behind is complete now"
    return items


@pytest.fixture(scope="session")
def three_ways() -> Callable[..., list[object]]:
    """three_ways(make, take, data): what `take` finds where the bytes come whole, byte by byte, and with half
    of a Heartbeat behind them, which is then completed. `take` gives what is there and empties the reader of
    it; `arrange` orders it where the order may depend on the cut."""
    return _three_ways


@pytest.fixture(scope="session")
def request_frame() -> Callable[..., bytes]:
    """request_frame(features, sequence=..., version=1, longer_bytes=0, ...): a SignalRequest built field by
    field from the table, not by the code under test; `longer_bytes` are appended to the block, as a newer
    version would."""

    def make(
        features: np.ndarray[tuple[int], np.dtype[np.float32]],
        *,
        version: int = 1,
        longer_bytes: int = 0,
        **others: int,
    ) -> bytes:
        assert longer_bytes % 8 == 0
        frame = np.zeros((), frame_dtype(fields.SIGNAL_REQUEST, features=len(features)))
        frame["block_length"] = request_frame_bytes(len(features)) - 8 + longer_bytes
        frame["template_id"] = 10
        frame["schema_id"] = 91
        frame["version"] = version
        for name, value in others.items():
            frame[name] = value
        frame["features"] = features
        return frame.tobytes() + b"\xee" * longer_bytes

    return make


class CppBuilder:
    """Compiles C++ against the shipped headers, each program once for all workers of a session; skips where
    there is no compiler.

    Args:
        folder: of this worker.
        built: where programs lie, of all workers.
    """

    warnings = ("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror")

    def __init__(self, folder: Path, built: Path) -> None:
        self._folder = folder
        self._built = built

    @staticmethod
    def need(compiler: str) -> str:
        """Its path."""
        path = shutil.which(compiler)
        if path is None:
            pytest.skip(f"needs {compiler} (Debian: apt install {compiler.replace('clang++', 'clang')})")
        return path

    def sanitized(self, kinds: str) -> tuple[str, ...]:
        """Flags for a build that ends at the first finding; skips where the compiler has no such
        sanitizer."""
        flags = (f"-fsanitize={kinds}", "-fno-sanitize-recover=all", "-g", "-O1", "-fno-omit-frame-pointer")
        source = self._folder / "empty.cpp"
        source.write_text("int main() {}\n")
        command = [self.need("g++"), *flags, "-o", str(self._folder / "empty"), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            pytest.skip(f"g++ has no -fsanitize={kinds} here: {done.stderr.strip().splitlines()[-1]}")
        return flags

    def check(self, source: Path, *flags: str, compiler: str, standard: str) -> None:
        """Compile a source file only to see that there is nothing to say about it."""
        command = [self.need(compiler), f"-std={standard}", *self.warnings, "-I", str(include_dir()), *flags]
        done = subprocess.run(
            [*command, "-c", "-o", os.devnull, str(source)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), " ".join(command)

    def build(self, source: Path, *flags: str, compiler: str = "g++", standard: str = "c++20") -> Path:
        """The executable of a source file; fails with the compiler's words."""
        command = [self.need(compiler), f"-std={standard}", *self.warnings, "-I", str(include_dir())]
        asked = "\0".join((*command, str(source), source.read_text("utf-8"), *flags))
        program = self._built / f"{source.stem}-{hashlib.sha256(asked.encode()).hexdigest()[:16]}"
        with locked(program.with_suffix(".lock")):
            if not program.exists():
                aside = program.with_suffix(".new")
                command += ["-pthread", "-o", str(aside), str(source), *flags]
                done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
                assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
                aside.rename(program)
        return program


@pytest.fixture(scope="session")
def cpp(tmp_path_factory: pytest.TempPathFactory) -> CppBuilder:
    """A compiler of C++ programs."""
    built = folder_of_all_workers(tmp_path_factory) / "cpp-built"
    built.mkdir(exist_ok=True)
    return CppBuilder(tmp_path_factory.mktemp("cpp"), built)


Scene = Callable[[socket.socket], None]


class Daemon:
    """Listens at `path` and plays `scene` with the one client that comes; `check()` raises what the scene
    raised."""

    def __init__(self, path: Path, scene: Scene) -> None:
        self.path = path
        self._scene = scene
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self._thread = ThreadPoolExecutor(1)
        self._played = self._thread.submit(self._play)

    def _play(self) -> None:
        with self.listener:
            connection, _ = self.listener.accept()
        # a client that leaves in the middle of a scene ends it
        with connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._scene(connection)

    def check(self) -> None:
        self._played.result()
        self._thread.shutdown()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Callable[[Scene], Path]]:
    """daemon(scene) starts one and gives its path; what a scene asserts is checked at the end of the test."""
    started: list[Daemon] = []

    def start(scene: Scene) -> Path:
        started.append(Daemon(tmp_path / f"{len(started)}.sock", scene))
        return started[-1].path

    yield start
    for one in started:
        one.check()
