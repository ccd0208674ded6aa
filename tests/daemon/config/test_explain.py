"""A refused configuration is told with the line, the nearest name and the values there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from sigd.daemon.config.config import load_config
from sigd.daemon.errors import UsageError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sigd.toml"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cpu = 1\nidle = 'spinn'", ["(line 2)", "expected one of 'spin', 'backoff', 'block'"]),
        ("cpu = 1\n\nlog_format = 'xml'", ["(line 3)", "expected one of 'auto', 'text', 'json', 'journal'"]),
        ("cpu = 1\nidel = 'spin'", ["unknown field `idel` (line 2): did you mean 'idle'?"]),
        ("[recorder]\ndirectry = '/x'", ["unknown field `directry`", "(line 2): did you mean 'directory'?"]),
        ("cpu = 1\n[acess]\nusers = []", ["unknown field `acess` (line 2): did you mean 'access'?"]),
        ("cpu = 1\n\ncpu_affinity = 2", ["unknown field `cpu_affinity` (line 3); known names"]),
        ("cpu = 1\nbatch_rows_max = 0", ["(line 2)"]),
    ],
)
def test_what_is_wrong_is_told_with_its_line(path: Path, text: str, words: list[str]) -> None:
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_config(path, {})
    for word in words:
        assert word in str(caught.value)


def test_a_byte_order_mark_is_nothing(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbfcpu = 3\n")
    assert load_config(path, {}).cpu == 3


def test_a_single_model_may_have_a_name_and_several_have_their_own(path: Path) -> None:
    path.write_text("model = 'a.onnx'\nname = 'short'\n")
    assert [model.name for model in load_config(path, {}).models()] == ["short"]
    path.write_text("name = 'short'\n[[model]]\npath = 'a.onnx'\n[[model]]\npath = 'b.onnx'\n")
    with pytest.raises(UsageError, match=r"put it into the \[\[model\]\] table"):
        load_config(path, {})
