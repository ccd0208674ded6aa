"""The structs of the native programs against the reader of their files. Those of the wire are the C++
client's, which tests/wire/cpp holds against the field tables."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np

from sigd.bench.load import native as load_native
from sigd.bench.load.contract import GAP, SAMPLE, ViolationKind
from sigd.bench.native.build import INCLUDE, PROGRAMS, SOURCES, NativePrograms, build
from sigd.wire.status import Status

FILES = {
    "PlanHeader": load_native.PLAN_HEADER,
    "ResultHeader": load_native.RESULT_HEADER,
    "Sample": SAMPLE,
    "Gap": GAP,
}


def printed(programs: NativePrograms, folder: Path, statements: str) -> list[int]:
    """The numbers that a program prints, one a line, which knows the structs of the load generator."""
    source, program = folder / "prints.cpp", folder / "prints"
    source.write_text(f'#include "exchange.hpp"\n#include <cstdio>\nint main() {{\n{statements}\n}}\n')
    include = ("-I", str(SOURCES), "-I", str(INCLUDE))
    subprocess.run([programs.command, "-std=c++20", *include, "-o", str(program), str(source)], check=True)
    lines = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    return [int(line) for line in lines.split()]


def compiled_offsets(programs: NativePrograms, folder: Path, wanted: list[tuple[str, str]]) -> list[int]:
    """offsetof for each (struct, member), sizeof where the member is ""."""
    return printed(
        programs,
        folder,
        "\n".join(
            f'std::printf("%zu\\n", offsetof(sigd::bench::{struct}, {member}));'
            if member
            else f'std::printf("%zu\\n", sizeof(sigd::bench::{struct}));'
            for struct, member in wanted
        ),
    )


def test_every_member_stands_where_the_tables_say(programs: NativePrograms, tmp_path: Path) -> None:
    wanted: list[tuple[str, str]] = []
    expected: list[int] = []
    for struct, dtype in FILES.items():
        assert dtype.fields is not None
        for name, (_, offset, *_) in dtype.fields.items():
            wanted.append((struct, name))
            expected.append(int(offset))
        wanted.append((struct, ""))
        expected.append(dtype.itemsize)
    found = compiled_offsets(programs, tmp_path, wanted)
    assert dict(zip(wanted, found, strict=True)) == dict(zip(wanted, expected, strict=True))


def test_the_last_status_is_the_wires(programs: NativePrograms, tmp_path: Path) -> None:
    last = 'std::printf("%u\\n", static_cast<unsigned>(sigd::bench::status_last));'
    assert printed(programs, tmp_path, last) == [max(Status)]


def test_the_kinds_of_violations_have_the_same_numbers() -> None:
    text = (SOURCES / "exchange.hpp").read_text()
    body = text.split("enum class ViolationKind", 1)[1].split("{", 1)[1].split("}", 1)[0]
    names = [name.strip() for name in body.replace("\n", " ").split(",") if name.strip()]
    assert [name.upper() for name in names] == [kind.name for kind in ViolationKind]
    assert [kind.value for kind in ViolationKind] == list(range(len(names)))


def test_the_programs_compile_without_a_warning(programs: NativePrograms) -> None:
    for source in sorted(SOURCES.glob("*.cpp")):
        done = subprocess.run(
            [
                # The product's flags, which its own build has proven, but for the time that -O3 takes.
                *(programs.command, *programs.flags, "-O1", "-Wpedantic", "-Wshadow", "-Werror"),
                *("-I", str(INCLUDE), "-c", "-o", os.devnull, str(source)),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_a_file_that_is_no_plan_is_refused(programs: NativePrograms, tmp_path: Path) -> None:
    for content in (b"", b"SGDPLAN1", np.zeros(1, load_native.PLAN_HEADER).tobytes()):
        plan = tmp_path / "plan"
        plan.write_bytes(content)
        done = subprocess.run(
            [programs.path("loadgen"), str(plan), str(tmp_path / "result")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 3
        assert "plan" in done.stderr


def test_building_again_takes_the_cached_programs(programs: NativePrograms) -> None:
    before = {name: Path(programs.path(name)).stat().st_mtime_ns for name in PROGRAMS}
    again = build()
    assert again == programs
    assert before == {name: Path(again.path(name)).stat().st_mtime_ns for name in before}
