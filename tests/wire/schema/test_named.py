"""The rows of one model by name, in SBE and in C++."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from sigd.wire.schema.named import NamedColumns, NamedModel, model_header
from sigd.wire.schema.sbe import NAMESPACE, schema_xml

MODEL = NamedModel(
    "lob-2",
    "ab" * 32,
    (
        NamedColumns("book", (2, 10), 0, "float32 [N, 2, 10]"),
        NamedColumns("class", (), 20, 'int64 [N] "*/\n#error'),
        NamedColumns("sequence", (3,), 21, "float32 [N, 3]"),
    ),
    (
        NamedColumns("label", (), 0, "string [N]", ("down", 'u"p')),
        NamedColumns("probabilities", (2,), 1, "float32 [N, 2]", ("down", "up")),
    ),
)


def test_the_sbe_schema_has_a_field_for_each_tensor() -> None:
    root = ElementTree.fromstring(schema_xml(24, 3, MODEL).encode())
    request = root.find(f"{{{NAMESPACE}}}message[@name='SignalRequest']")
    assert request is not None
    fields = [field.attrib for field in request if field.attrib["type"].startswith("Columns")]
    assert [(field["name"], field["type"], field["offset"]) for field in fields] == [
        ("book", "Columns20", "32"),
        ("class_", "Columns1", "112"),
        ("sequence_2", "Columns3", "116"),
    ]
    assert len({field.attrib["id"] for field in request}) == len(request)
    lengths = {one.attrib["name"]: one.attrib.get("length") for one in root.iter("type")}
    assert (lengths["Columns20"], lengths["Columns1"], lengths["Columns2"]) == ("20", "1", "2")


def test_the_header_gives_rows_and_answers_by_name(tmp_path: Path) -> None:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    (tmp_path / "model.hpp").write_text(model_header(MODEL), "utf-8")
    (tmp_path / "main.cpp").write_text(
        """
        #include "model.hpp"
        namespace m = sigd::models::lob_2;
        int main() {
            m::Row row;
            row.features.book[1][3] = 7;
            row.features.class_ = 4;
            const auto floats = row.floats();
            const float outputs[] = {1, 0.25F, 0.75F};
            const m::Outputs answer = m::answer_of(outputs);
            const bool good = floats.size() == 24 && floats[13] == 7 && floats[20] == 4 &&
                              answer.probabilities[1] == 0.75F && m::probabilities_classes[1][0] == 'u';
            return good ? 0 : 1;
        }
        """,
        "utf-8",
    )
    command = [compiler, "-std=c++20", "-Wall", "-Wextra", "-Werror", "main.cpp", "-o", "main"]
    subprocess.run(command, cwd=tmp_path, check=True)
    subprocess.run([tmp_path / "main"], check=True)
