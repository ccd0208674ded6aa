"""Files that models are kept in before any export: recognised by their content, and how each becomes ONNX."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_HEAD_BYTES: Final = 4096
_OPENED_BYTES_MAX: Final = 1 << 20
"""Of a compressed pickle so much is unpacked, to see whose it is."""


@dataclass(frozen=True, slots=True)
class NativeFormat:
    """One kind of file.

    Attributes:
        name: for messages.
        converted: whether `sigd convert` reads it.
        way_out: for one that it does not: the lines that export it.
    """

    name: str
    converted: bool
    way_out: str = ""


LIGHTGBM: Final = NativeFormat("a LightGBM model", True)
XGBOOST: Final = NativeFormat("an XGBoost model", True)
CATBOOST: Final = NativeFormat("a CatBoost model", True)
_TO_ONNX: Final = (
    "where the model was trained: from skl2onnx import to_onnx;"
    ' open("m.onnx", "wb").write(to_onnx(model, X[:1].astype("float32")).SerializeToString())'
)
SKOPS: Final = NativeFormat("a scikit-learn model in the format of skops", True, _TO_ONNX)
PICKLE: Final = NativeFormat(
    "a pickle, which runs any code when it is opened, so sigd never opens one",
    False,
    _TO_ONNX,
)
JOBLIB: Final = NativeFormat(
    "a compressed pickle (joblib), which runs any code when it is opened, so sigd never opens one",
    False,
    PICKLE.way_out,
)
TORCH: Final = NativeFormat(
    "a PyTorch file",
    False,
    "where the model was trained: torch.onnx.export(model.eval(), (x,), "
    '"m.onnx", dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False), with x of two rows',
)
KERAS: Final = NativeFormat(
    "a Keras model", False, 'where the model was trained: model.export("m.onnx", format="onnx")'
)


def recognise(content: bytes) -> NativeFormat | None:
    """What a file is, by its first bytes; None where it is none of these."""
    head = content[:_HEAD_BYTES]
    if head.startswith(b"tree\n") and b"version=" in head:
        return LIGHTGBM
    if head.startswith(b"CBM1"):
        return CATBOOST
    if head.lstrip().startswith(b"{") and (b'"learner"' in head or b'"learner"' in content[-_HEAD_BYTES:]):
        return XGBOOST
    if head.startswith(b"{L") and b"learner" in head:
        return XGBOOST
    if head.startswith(b"PK\x03\x04"):
        if b"schema.json" in content[-_HEAD_BYTES:]:
            return SKOPS
        if b".keras" in head or b"metadata.json" in head or b"model.weights.h5" in content[-_HEAD_BYTES:]:
            return KERAS
        return TORCH if b"data.pkl" in content or b"/version" in content[-_HEAD_BYTES:] else None
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return KERAS
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return PICKLE
    if head.startswith((b"\x78\x9c", b"\x78\x01", b"\x78\xda", b"ZF")):
        return JOBLIB
    return None


_SAVED_AS_DATA: Final = (
    (b"lightgbm.", 'model.booster_.save_model("m.txt") (of a Booster model.save_model("m.txt"))', "m.txt"),
    (b"xgboost.", 'model.save_model("m.json")', "m.json"),
    (b"catboost", 'model.save_model("m.cbm")', "m.cbm"),
)
"""Modules that a pickle names, and how their models are saved as data."""


def _way_out_of_pickle(found: NativeFormat, content: bytes) -> str:
    """The lines for the model that a pickle is of, by the modules that it names; it is not opened."""
    head = content[:_OPENED_BYTES_MAX]
    if found is JOBLIB:
        try:
            head = zlib.decompressobj().decompress(content, _OPENED_BYTES_MAX)
        except zlib.error:
            head = b""
    if b"sklearn.pipeline" in head:
        return found.way_out
    for module, saved, name in _SAVED_AS_DATA:
        if module in head:
            return f"where the model was trained: {saved}; then sigd convert {name} -o m.onnx"
    return found.way_out


def no_onnx_model(path: Path, content: bytes) -> str:
    """Why a file is not served, with the lines that lead to one that is."""
    found = recognise(content)
    if found is None:
        return (
            f"{path}: not an ONNX model ({len(content)} bytes), expected a file written by an ONNX exporter"
        )
    if found.converted:
        return (
            f"{path}: {found.name}, expected an ONNX model: sigd convert {path} -o m.onnx"
            " (needs pip install 'sigd[convert]'), then sigd serve --model m.onnx"
        )
    way_out = _way_out_of_pickle(found, content) if found in (PICKLE, JOBLIB) else found.way_out
    return f"{path}: {found.name}, expected an ONNX model: {way_out}; then sigd serve --model m.onnx"
