"""Building the native programs where the compiler is missing, broken, or slow to be found."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from sigd.bench.errors import MissingDependency
from sigd.bench.native import build as native

FAKE_COMPILER = """#!/bin/sh
if [ "$1" = --version ]; then echo "fake 1.0"; exit 0; fi
echo "$@" >> "{log}"
{body}
while [ "$1" != -o ]; do shift; done
printf '#!/bin/sh\\n' > "$2"; chmod +x "$2"
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SIGD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def install_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str = "") -> Path:
    """A compiler that notes what it was asked for; returns its notes."""
    log = folder / "compiled"
    compiler = folder / "fake-c++"
    compiler.write_text(FAKE_COMPILER.format(log=log, body=body))
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    return log


def test_each_program_is_compiled_once(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = install_compiler(tmp_path, monkeypatch)
    first = native.build()
    assert first.compiler == "fake 1.0"
    assert first.directory.is_relative_to(cache)
    assert all(os.access(first.path(name), os.X_OK) for name in native.PROGRAMS)
    assert len(log.read_text().splitlines()) == len(native.PROGRAMS)
    assert native.build() == first
    assert len(log.read_text().splitlines()) == len(native.PROGRAMS)
    assert [path.name for path in first.directory.parent.iterdir()] == [first.directory.name]


def test_other_sources_are_other_programs(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_compiler(tmp_path, monkeypatch)
    first = native.build()
    sources = tmp_path / "sources"
    sources.mkdir()
    for source in native.SOURCES.iterdir():
        if source.is_file():
            (sources / source.name).write_bytes(source.read_bytes())
    monkeypatch.setattr(native, "SOURCES", sources)
    assert native.build() == first, "where they lie does not matter"
    (sources / "platform.hpp").write_text("// changed\n")
    assert native.build().directory != first.directory


def test_other_headers_of_the_client_are_other_programs(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_compiler(tmp_path, monkeypatch)
    first = native.build()
    headers = tmp_path / "include"
    shutil.copytree(native.INCLUDE, headers)
    (headers / "sigd" / "ring.hpp").write_text("// changed\n")
    monkeypatch.setattr(native, "INCLUDE", headers)
    assert native.build().directory != first.directory


def test_no_compiler_says_how_to_get_one(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependency, match=r"none of c\+\+, g\+\+, clang\+\+.*apt install g\+\+"):
        native.build()
    monkeypatch.setenv("CXX", "absent-c++")
    with pytest.raises(MissingDependency, match=r"\$CXX names 'absent-c\+\+'"):
        native.build()


def test_a_failing_compiler_is_quoted_and_leaves_nothing(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_compiler(tmp_path, monkeypatch, body='echo "unknown standard c++20" >&2; exit 1')
    with pytest.raises(MissingDependency, match=r"unknown standard c\+\+20"):
        native.build()
    assert list((cache / "native").iterdir()) == []


def test_cache_that_cannot_be_written_names_what_to_set(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_compiler(tmp_path, monkeypatch)
    cache.write_text("a file stands where the folder would be")
    with pytest.raises(MissingDependency, match=r"cannot be made .* SIGD_CACHE"):
        native.build()


def test_who_comes_second_takes_what_the_first_built(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_compiler(tmp_path, monkeypatch)
    compile_one = native.compile_program
    others: list[native.NativePrograms] = []

    def compile_late(compiler: str, source: Path, executable: Path) -> None:
        # Another process looks, builds and finishes while we are at our first program.
        if not others:
            monkeypatch.setattr(native, "compile_program", compile_one)
            others.append(native.build())
        compile_one(compiler, source, executable)

    monkeypatch.setattr(native, "compile_program", compile_late)
    assert native.build() == others[0]
    assert [path.name for path in (cache / "native").iterdir()] == [others[0].directory.name]
