"""The structs of the native programs against the wire's field tables and against the reader of their files."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from sigd.bench import load_native
from sigd.bench.load import SAMPLE, ViolationKind
from sigd.bench.native import SOURCES, NativePrograms, build
from sigd.wire import fields, layout

FRAMES = {
    "Hello": fields.HELLO,
    "Welcome": fields.WELCOME,
    "Reject": fields.REJECT,
    "RequestHead": fields.SIGNAL_REQUEST,
    "ResponseHead": fields.SIGNAL_RESPONSE,
}
FILES = {
    "PlanHeader": load_native.PLAN_HEADER,
    "ResultHeader": load_native.RESULT_HEADER,
    "Sample": SAMPLE,
}


def compiled_offsets(programs: NativePrograms, folder: Path, wanted: list[tuple[str, str]]) -> list[int]:
    """offsetof for each (struct, member), sizeof where the member is ""."""
    lines = "\n".join(
        f'std::printf("%zu\\n", offsetof(sigd::{struct}, {member}));'
        if member
        else f'std::printf("%zu\\n", sizeof(sigd::{struct}));'
        for struct, member in wanted
    )
    source = folder / "offsets.cpp"
    source.write_text(f'#include "exchange.hpp"\n#include <cstdio>\nint main() {{\n{lines}\n}}\n')
    program = folder / "offsets"
    subprocess.run(
        [programs.command, "-std=c++20", "-I", str(SOURCES), "-o", str(program), str(source)], check=True
    )
    printed = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    return [int(line) for line in printed.split()]


def test_every_member_stands_where_the_tables_say(programs: NativePrograms, tmp_path: Path) -> None:
    wanted: list[tuple[str, str]] = []
    expected: list[int] = []
    for struct, message in FRAMES.items():
        for field in message.fields:
            if isinstance(field.count, str):
                # What varies with the model follows the struct.
                wanted.append((struct, ""))
            else:
                wanted.append((struct, field.name))
            expected.append(field.offset)
        if message.frame_bytes is not None:
            wanted.append((struct, ""))
            expected.append(message.frame_bytes)
    for struct, dtype in FILES.items():
        assert dtype.fields is not None
        for name, (_, offset, *_) in dtype.fields.items():
            wanted.append((struct, name))
            expected.append(int(offset))
        wanted.append((struct, ""))
        expected.append(dtype.itemsize)
    found = compiled_offsets(programs, tmp_path, wanted)
    assert dict(zip(wanted, found, strict=True)) == dict(zip(wanted, expected, strict=True))


@pytest.mark.parametrize("count", [1, 2, 3, 64])
def test_frame_lengths_agree(programs: NativePrograms, tmp_path: Path, count: int) -> None:
    source = tmp_path / "lengths.cpp"
    source.write_text(
        '#include "frames.hpp"\n#include <cstdio>\n'
        f'int main() {{ std::printf("%zu %zu", sigd::request_bytes({count}), sigd::response_bytes({count})); }}\n'
    )
    program = tmp_path / "lengths"
    subprocess.run(
        [programs.command, "-std=c++20", "-I", str(SOURCES), "-o", str(program), str(source)], check=True
    )
    printed = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    assert [int(word) for word in printed.split()] == [
        layout.request_frame_bytes(count),
        layout.response_frame_bytes(count),
    ]


def test_the_kinds_of_violations_have_the_same_numbers() -> None:
    text = (SOURCES / "exchange.hpp").read_text()
    body = text.split("enum class ViolationKind", 1)[1].split("{", 1)[1].split("}", 1)[0]
    names = [name.strip() for name in body.replace("\n", " ").split(",") if name.strip()]
    assert [name.upper() for name in names] == [kind.name for kind in ViolationKind]
    assert [kind.value for kind in ViolationKind] == list(range(len(names)))


def test_the_programs_compile_without_a_warning(programs: NativePrograms, tmp_path: Path) -> None:
    for source in sorted(SOURCES.glob("*.cpp")):
        done = subprocess.run(
            [
                *(programs.command, *programs.flags, "-Wpedantic", "-Wshadow", "-Werror"),
                *("-o", str(tmp_path / source.stem), str(source)),
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
    before = {name: Path(programs.path(name)).stat().st_mtime_ns for name in ("loadgen", "echo", "hiccup")}
    again = build()
    assert again == programs
    assert before == {name: Path(again.path(name)).stat().st_mtime_ns for name in before}
