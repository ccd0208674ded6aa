"""Builds the programs of `native/` with the compiler at hand, once for each source, compiler and processor.

The binaries go to a cache of the user's: $SIGD_CACHE, else $XDG_CACHE_HOME/sigd, else ~/.cache/sigd.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sigd.bench.errors import MissingDependency
from sigd.wire.schema.cpp_header import include_dir

SOURCES = Path(__file__).parent
#: The C++ client, whose frames and rings the programs use.
INCLUDE = include_dir()
PROGRAMS = ("loadgen", "peers", "echo", "ring_echo", "hiccup")
FLAGS = ("-std=c++20", "-O3", "-march=native", "-Wall", "-Wextra")
_CANDIDATES = ("c++", "g++", "clang++")
_BUILD_TIMEOUT_S = 180


@dataclass(frozen=True)
class NativePrograms:
    """The built programs.

    Attributes:
        directory: where the executables of PROGRAMS lie.
        command: the compiler's path.
        compiler: the first line of its `--version`.
        flags: what it was given.
    """

    directory: Path
    command: str
    compiler: str
    flags: tuple[str, ...]

    def path(self, program: str) -> str:
        """The executable of one of PROGRAMS."""
        return str(self.directory / program)


def build() -> NativePrograms:
    """Find the programs in the cache, or compile them into it.

    Raises:
        MissingDependency: there is no C++20 compiler, or it failed; the message has its words.
    """
    compiler = _find_compiler()
    version = _version(compiler)
    directory = cache_folder() / "native" / _digest(compiler, version)
    programs = NativePrograms(directory, compiler, version, FLAGS)
    if all(os.access(programs.path(name), os.X_OK) for name in PROGRAMS):
        return programs
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MissingDependency(
            f"{directory.parent} cannot be made for the programs of the measurement: {error.strerror}; name a"
            " folder"
            " that you can write to in SIGD_CACHE, or measure with --client python and without --floor"
        ) from error
    # Built aside and renamed: no process meets half a build, and the second to come finds the first's.
    aside = Path(tempfile.mkdtemp(prefix="build-", dir=directory.parent))
    try:
        for name in PROGRAMS:
            compile_program(compiler, SOURCES / f"{name}.cpp", aside / name)
        try:
            aside.rename(directory)
        except OSError:
            if not directory.exists():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return programs


def _find_compiler() -> str:
    chosen = os.environ.get("CXX")
    names = (chosen,) if chosen else _CANDIDATES
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    what = (
        f"$CXX names {chosen!r}, which is not on PATH" if chosen else f"none of {', '.join(names)} is on PATH"
    )
    raise MissingDependency(
        f"no C++ compiler: {what}. Install one (Debian: apt install g++; Fedora: dnf install gcc-c++) or"
        " measure "
        "with --client python and without --floor"
    )


def _version(compiler: str) -> str:
    try:
        shown = subprocess.run(
            [compiler, "--version"], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise MissingDependency(f"the C++ compiler {compiler} does not run: {error}") from error
    return shown.splitlines()[0] if shown else compiler


def compile_program(compiler: str, source: Path, executable: Path) -> None:
    """Compile a program. Raises MissingDependency with what the compiler said."""
    command = [compiler, *FLAGS, "-I", str(INCLUDE), "-o", str(executable), str(source)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise MissingDependency(f"{' '.join(command)} did not finish: {error}") from error
    if done.returncode != 0:
        raise MissingDependency(
            f"{' '.join(command)} failed (a compiler for C++20 is needed, g++ 11 or clang++ 14 and later):\n"
            f"{done.stderr[-2000:]}"
        )


def _digest(compiler: str, version: str) -> str:
    seen = hashlib.sha256()
    for source in (*sorted(SOURCES.iterdir()), *sorted(INCLUDE.rglob("*.hpp"))):
        if source.suffix in (".cpp", ".hpp"):
            seen.update(source.name.encode() + b"\0" + source.read_bytes())
    # -march=native: a home folder shared between machines must not share the binaries of another processor.
    for part in (compiler, version, *FLAGS, _processor()):
        seen.update(part.encode() + b"\0")
    return seen.hexdigest()[:24]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return os.uname().machine
    described = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
    return "\n".join(sorted(set(described)))


def cache_folder() -> Path:
    """Where what is built or installed for measurements is kept."""
    named = os.environ.get("SIGD_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "sigd"
