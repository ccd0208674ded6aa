"""Files of other formats are recognised by their content, and answered with the lines that convert them."""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sigd.models import convert as convert_module
from sigd.models.convert import convert
from sigd.models.errors import BackendUnavailable, ModelRefused
from sigd.models.native_files import (
    CATBOOST,
    JOBLIB,
    KERAS,
    LIGHTGBM,
    PICKLE,
    SKOPS,
    TORCH,
    XGBOOST,
    recognise,
)
from sigd.models.onnx.file import read_onnx
from sigd.models.registry import open_backend

LIGHTGBM_TEXT = b"tree\nversion=v4\nnum_class=1\n\nTree=0\nthreshold=0.1 0.5\n"


def archive(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name in names:
            file.writestr(name, b"")
    return content.getvalue()


CASES = [
    (LIGHTGBM_TEXT, LIGHTGBM),
    (b'{"learner":{"attributes":{}},"version":[3,2,0]}', XGBOOST),
    (b"{L\x00\x00\x00\x00\x00\x00\x00\x07learner{", XGBOOST),
    (b"CBM1\x080\x00\x00", CATBOOST),
    (pickle.dumps([1.0]), PICKLE),
    (zlib.compress(b"anything"), JOBLIB),
    (archive("m/data.pkl", "m/version"), TORCH),
    (archive("metadata.json", "model.weights.h5"), KERAS),
    (archive("1.npy", "schema.json"), SKOPS),
    (b"\x89HDF\r\n\x1a\n", KERAS),
]


@pytest.mark.parametrize(("content", "kind"), CASES)
def test_each_format_is_recognised(tmp_path: Path, content: bytes, kind: object) -> None:
    found = recognise(content)
    assert found is kind
    assert found is not None
    for name in ("model.onnx", "model.bin"):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ModelRefused) as refusal:
            open_backend(path)
        assert found.name in str(refusal.value)
        line = f"sigd convert {path} -o m.onnx" if found.converted else found.way_out
        assert line in str(refusal.value)


@pytest.mark.parametrize("content", [b"\x08\x08\x12\x04", b"", b"hello", archive("notes.txt")])
def test_what_is_none_of_them_is_not(content: bytes) -> None:
    assert recognise(content) is None


def test_a_pickle_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle, "loads", lambda *_: pytest.fail("opened"))
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps([1.0]))
    with pytest.raises(ModelRefused, match="so sigd never opens one"):
        convert(path)
    with pytest.raises(ModelRefused, match="to_onnx"):
        read_onnx(path)


def test_a_converter_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    path = tmp_path / "m.txt"
    path.write_bytes(LIGHTGBM_TEXT)
    with pytest.raises(BackendUnavailable, match=r"pip install 'sigd\[convert\]'"):
        convert(path)


def test_what_a_converter_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, content: bytes) -> convert_module.Converted:
        raise ValueError("a tree without leaves")

    # The packages that it needs are extras: it cannot fail for real everywhere.
    monkeypatch.setattr(convert_module, "_lightgbm", refuse)
    path = tmp_path / "m.txt"
    path.write_bytes(LIGHTGBM_TEXT)
    with pytest.raises(ModelRefused, match="its converter refuses: a tree without leaves"):
        convert(path)


@pytest.mark.parametrize("packed", [bytes, zlib.compress])
@pytest.mark.parametrize(
    ("modules", "lines"),
    [
        (b"clightgbm.sklearn\nLGBMClassifier\n", 'model.booster_.save_model("m.txt")'),
        (b"cxgboost.sklearn\nXGBRegressor\n", 'model.save_model("m.json")'),
        (b"ccatboost.core\nCatBoost\n", 'model.save_model("m.cbm")'),
        (b"csklearn.linear_model\nRidge\n", "from skl2onnx import to_onnx"),
        (b"csklearn.pipeline\nPipeline\nclightgbm.sklearn\nLGBMClassifier\n", "from skl2onnx import to_onnx"),
    ],
)
def test_a_pickle_is_answered_with_the_lines_for_the_model_in_it(
    tmp_path: Path, packed: Callable[[bytes], bytes], modules: bytes, lines: str
) -> None:
    path = tmp_path / "m.pkl"
    path.write_bytes(packed(b"\x80\x04" + modules + b"."))
    with pytest.raises(ModelRefused) as refusal:
        open_backend(path)
    assert lines in str(refusal.value)


def test_lightgbm_thresholds_are_rounded_down_to_float32() -> None:
    """A float32 feature goes left of the one exactly where it goes left of the other."""
    text = "tree_sizes=70\n\nTree=0\nthreshold=0.1 0.5 -0.1 0.7\nleaf_value=1 2\n"
    rounded, thresholds = convert_module._rounded_down(text)
    (line,) = [line for line in rounded.splitlines() if line.startswith("threshold=")]
    found = np.array(line.removeprefix("threshold=").split(), np.float64)
    assert "tree_sizes" not in rounded
    assert rounded.endswith("leaf_value=1 2\n")
    assert thresholds.tolist() == [0.1, 0.5, -0.1, 0.7]
    assert (found == found.astype(np.float32)).all()
    assert (
        (found <= thresholds) & (np.nextafter(found.astype(np.float32), np.float32(9)) > thresholds)
    ).all()
