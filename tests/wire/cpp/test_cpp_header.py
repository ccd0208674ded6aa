"""The generated C++ header: as committed, and as two compilers in two standards lay it out."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from sigd.wire import fields
from sigd.wire.layout import frame_dtype, header_word, request_frame_bytes, response_frame_bytes
from sigd.wire.schema.cpp_header import cpp_header, include_dir
from sigd.wire.status import GoodbyeCode, HelloFlag, RejectCode, Status, Transport

if TYPE_CHECKING:
    from tests.wire.conftest import CppBuilder

FEATURES, OUTPUTS = 5, 3
ENUMS = (Status, RejectCode, GoodbyeCode, Transport, HelloFlag)
_STRUCTS = {message.name: message.name for message in fields.MESSAGES} | {
    "SignalRequest": f"SignalRequest<{FEATURES}>",
    "SignalResponse": f"SignalResponse<{OUTPUTS}>",
}


def test_the_committed_header_is_the_generated_one() -> None:
    committed = (include_dir() / "sigd" / "sigd_wire.hpp").read_text("utf-8")
    assert committed == cpp_header(), (
        "write it anew: sigd schema --format cpp -o wire/cpp/include/sigd/sigd_wire.hpp"
    )


def _member(message: fields.Message, field: fields.Field) -> str:
    """How C++ reaches a field of a whole frame."""
    if message.frame_bytes is None and isinstance(field.count, int):
        return f"head.{field.name}"
    return field.name


def _printed(expressions: dict[str, str]) -> str:
    """A program that prints each expression, a number, after its key."""
    lines = "\n".join(
        f'    std::printf("{key} %llu\\n", static_cast<unsigned long long>({value}));'
        for key, value in expressions.items()
    )
    return f"""
#include <cstdio>
#include <sigd/sigd_wire.hpp>
using namespace sigd::wire;
int main() {{
{lines}
}}
"""


def _layout_expressions() -> dict[str, str]:
    found: dict[str, str] = {}
    for message in fields.MESSAGES:
        struct = _STRUCTS[message.name]
        found[f"sizeof.{message.name}"] = f"sizeof({struct})"
        for field in message.fields:
            found[f"{message.name}.{field.name}"] = f"offsetof({struct}, {_member(message, field)})"
    for region_field in fields.REGION:
        found[f"region.{region_field.name}"] = f"offsetof(RegionHeader, {region_field.name})"
        found[f"sizeof.region.{region_field.name}"] = f"sizeof(RegionHeader::{region_field.name})"
    for enumeration in ENUMS:
        for member in enumeration:
            if member.name and (member.value or enumeration is not HelloFlag):
                found[f"{enumeration.__name__}.{member.name}"] = (
                    f"{enumeration.__name__}::{member.name.lower()}"
                )
    for count in (1, 2, 3, 64, 16_370):
        found[f"request.{count}"] = f"request_frame_bytes({count})"
        found[f"response.{count}"] = f"response_frame_bytes({count})"
    found["word"] = "header_word(TemplateId::signal_response, 72)"
    return found


def _expected() -> dict[str, int]:
    found: dict[str, int] = {}
    for message in fields.MESSAGES:
        dtype = frame_dtype(message, FEATURES, OUTPUTS)
        assert dtype.fields is not None
        found[f"sizeof.{message.name}"] = dtype.itemsize
        found |= {f"{message.name}.{field.name}": dtype.fields[field.name][1] for field in message.fields}
    for region_field in fields.REGION:
        found[f"region.{region_field.name}"] = region_field.offset
        found[f"sizeof.region.{region_field.name}"] = fields.SIZE_BYTES[region_field.kind]
    for enumeration in ENUMS:
        found |= {
            f"{enumeration.__name__}.{member.name}": member.value
            for member in enumeration
            if member.name and (member.value or enumeration is not HelloFlag)
        }
    for count in (1, 2, 3, 64, 16_370):
        found[f"request.{count}"] = request_frame_bytes(count)
        found[f"response.{count}"] = response_frame_bytes(count)
    found["word"] = header_word(11, 72)
    return found


@pytest.mark.parametrize("standard", ["c++20", "c++2b"])
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_compilers_lay_it_out_as_the_tables_say(
    cpp: CppBuilder, tmp_path: Path, compiler: str, standard: str
) -> None:
    source = tmp_path / "layout.cpp"
    source.write_text(_printed(_layout_expressions()))
    program = cpp.build(source, compiler=compiler, standard=standard)
    printed = subprocess.run([program], capture_output=True, text=True, timeout=60, check=True).stdout
    assert {key: int(value) for key, value in map(str.split, printed.splitlines())} == _expected()


def test_a_frame_written_in_cpp_is_the_one_that_python_reads(cpp: CppBuilder, tmp_path: Path) -> None:
    source = tmp_path / "frame.cpp"
    source.write_text(
        """
#include <cstdio>
#include <sigd/sigd_wire.hpp>
using namespace sigd::wire;
int main() {
    SignalRequest<5> frame{};
    frame.head = {make_header(frame.template_id, sizeof frame), 7, 8, 9, 10, 0, 0};
    for (std::size_t i = 0; i < frame.features_count; ++i) frame.features[i] = 0.5F + static_cast<float>(i);
    return std::fwrite(&frame, sizeof frame, 1, stdout) == 1 ? 0 : 1;
}
"""
    )
    program = cpp.build(source)
    written = subprocess.run([program], capture_output=True, timeout=60, check=True).stdout
    expected = np.zeros((), frame_dtype(fields.SIGNAL_REQUEST, FEATURES))
    expected["block_length"] = request_frame_bytes(FEATURES) - 8
    expected["template_id"], expected["schema_id"], expected["version"] = 10, 91, 1
    expected["sequence"], expected["client_time_ns"], expected["deadline_ns"] = 7, 8, 9
    expected["instrument_id"] = 10
    expected["features"] = np.arange(FEATURES, dtype=np.float32) + 0.5
    assert written == expected.tobytes()
