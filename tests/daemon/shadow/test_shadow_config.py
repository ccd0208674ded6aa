"""How a shadow is asked for, and what is wrong with other ways of asking."""

from __future__ import annotations

from pathlib import Path

import pytest

from sigd.daemon.config.config import load_config
from sigd.daemon.config.models import ShadowTable
from sigd.daemon.errors import UsageError

SEVERAL = """
[[model]]
path = "a.onnx"
[model.shadow]
path = "new/a.onnx"
sample = 0.25
[[model]]
path = "b.onnx"
"""


def test_there_is_none_unless_it_is_asked_for() -> None:
    (model,) = load_config(None, {}).models()
    assert model.shadow is None


def test_of_one_model_by_flag_or_in_a_file(tmp_path: Path) -> None:
    (model,) = load_config(None, {"shadow": {"path": "b.onnx"}}).models()
    assert model.shadow == ShadowTable(path="b.onnx")
    file = tmp_path / "sigd.toml"
    file.write_text('model = "a.onnx"\n[shadow]\npath = "b.onnx"\nbackend = "oracle"\ngpu = 1\n')
    (model,) = load_config(file, {}).models()
    assert model.shadow == ShadowTable(path=str(tmp_path / "b.onnx"), backend="oracle", gpu=1)
    (model,) = load_config(file, {"shadow": {"path": "c.onnx"}}).models()
    assert model.shadow == ShadowTable(path="c.onnx", backend="oracle", gpu=1)


def test_of_several_models_each_has_its_own_or_none(tmp_path: Path) -> None:
    file = tmp_path / "sigd.toml"
    file.write_text(SEVERAL)
    one, other = load_config(file, {}).models()
    assert one.shadow == ShadowTable(path=str(tmp_path / "new/a.onnx"), sample=0.25)
    assert other.shadow is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[shadow]\n", "missing required field `path`"),
        ('[shadow]\npath = ""\n', "length >= 1"),
        ('[shadow]\npath = "b"\nsample = 0.0\n', "> 0"),
        ('[shadow]\npath = "b"\nsample = 1.5\n', "<= 1"),
        ('[shadow]\npath = "b"\nshare = 1\n', "known names are: path, backend, sample, gpu"),
        (SEVERAL + "[model.shadow]\nshare = 1\n", "known names are: path, backend, sample, gpu"),
        ('[shadow]\npath = "b"\n' + SEVERAL, "put the table [model.shadow] below the [[model]]"),
        ('[shadow]\npath = "b\\u0000"\n', "zero byte"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "sigd.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_config(file, {})
    assert words in str(caught.value)
    assert str(file) in str(caught.value)
