"""Native files of gradient-boosted trees and of scikit-learn as ONNX, by the converters that their projects
keep.

Only formats that hold data are read: LightGBM's text, XGBoost's JSON and UBJSON, CatBoost's cbm, skops for
scikit-learn. A pickle runs code when it is opened, so none is.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sigd.models.errors import BackendUnavailable, ModelRefused
from sigd.models.native_files import CATBOOST, LIGHTGBM, SKOPS, XGBOOST, no_onnx_model, recognise
from sigd.models.onnx.trees import inexact_in_float32
from sigd.models.trusted_file import read_file

_OPSET: Final = 15
_SKLEARN_OPSET: Final = {"": 18, "ai.onnx.ml": 3}
_TREE_SIZES: Final = "tree_sizes="
_THRESHOLDS: Final = "threshold="
_ONLY_DATA: Final = frozenset({"sklearn.tree._tree.Tree"})
"""Types that skops leaves to its user, because a wrong one fails when it predicts. Nothing predicts here: the
converter reads its arrays."""
Float64Array = npt.NDArray[np.float64]
INSTALL: Final = "pip install 'sigd[convert]'"


@dataclass(frozen=True, slots=True)
class Converted:
    """An ONNX model.

    Attributes:
        content: serialised.
        thresholds: values that the trees compare features with, where the format tells them; else 0.
        inexact: those of them that are no float32, and were rounded down, see `_rounded_down`.
    """

    content: bytes
    thresholds: int = 0
    inexact: int = 0


def convert(path: Path) -> Converted:
    """Read a native file and convert it.

    Raises:
        ModelRefused: it cannot be read, or is of a format that is not converted; with what to do.
        BackendUnavailable: a package that converts it is not installed.
    """
    try:
        content = read_file(path)
    except OSError as error:
        raise ModelRefused(f"{path}: cannot be read: {error.strerror or error}") from error
    found = recognise(content)
    converters = {LIGHTGBM: _lightgbm, XGBOOST: _xgboost, CATBOOST: _catboost, SKOPS: _skops}
    if found is None or found not in converters:
        raise ModelRefused(no_onnx_model(path, content))
    try:
        return converters[found](path, content)
    except ImportError as error:
        raise BackendUnavailable(
            f"{path}: {found.name}, and {error.name} is not installed: {INSTALL}"
        ) from error
    except ModelRefused:
        raise
    except Exception as error:
        raise ModelRefused(f"{path}: {found.name}, which its converter refuses: {error}") from error


def _lightgbm(path: Path, content: bytes) -> Converted:
    import lightgbm
    import onnxmltools

    text, thresholds = _rounded_down(content.decode("utf-8"))
    booster = lightgbm.Booster(model_str=text)
    model = onnxmltools.convert_lightgbm(
        booster, initial_types=_inputs(booster.num_feature()), target_opset=_OPSET, zipmap=False
    )
    return Converted(model.SerializeToString(), len(thresholds), inexact_in_float32(thresholds))


def _rounded_down(text: str) -> tuple[str, Float64Array]:
    """LightGBM's text with each threshold as the next float32 below it, and the thresholds as they were.

    A feature goes left where it is at most the threshold. For features of float32 both thresholds say the
    same; a converter would round to the nearest, and a feature on one that was rounded up would change sides.
    """
    lines, found = [], []
    for line in text.splitlines():
        if line.startswith(_TREE_SIZES):
            # It counts the bytes of each tree, which are others now; LightGBM reads the trees without it.
            continue
        if line.startswith(_THRESHOLDS):
            values = np.array(line.removeprefix(_THRESHOLDS).split(), np.float64)
            nearest = values.astype(np.float32)
            below = np.where(nearest > values, np.nextafter(nearest, np.float32(-np.inf)), nearest)
            found.append(values)
            line = _THRESHOLDS + " ".join(repr(value) for value in below.astype(np.float64).tolist())
        lines.append(line)
    thresholds = np.concatenate(found) if found else np.empty(0, np.float64)
    return "\n".join(lines) + "\n", thresholds


def _xgboost(path: Path, content: bytes) -> Converted:
    import onnxmltools
    import xgboost

    booster = xgboost.Booster()
    booster.load_model(bytearray(content))
    # The converter knows names of the form f0, f1, ... only.
    booster.feature_names = None
    booster.feature_types = None
    model = onnxmltools.convert_xgboost(
        booster, initial_types=_inputs(booster.num_features()), target_opset=_OPSET
    )
    return Converted(model.SerializeToString())


def _catboost(path: Path, content: bytes) -> Converted:
    import catboost

    model = catboost.CatBoost()
    model.load_model(blob=content)
    with tempfile.TemporaryDirectory(prefix="sigd-convert") as folder:
        written = Path(folder) / "m.onnx"
        model.save_model(str(written), format="onnx")
        return Converted(written.read_bytes())


def _skops(path: Path, content: bytes) -> Converted:
    from skl2onnx import to_onnx
    from skops import io

    unknown = sorted(set(io.get_untrusted_types(data=content)) - _ONLY_DATA)
    if unknown:
        raise ModelRefused(
            f"{path}: {SKOPS.name}, which holds {', '.join(unknown)}: types that could run code, so it is not"
            f" opened here; {SKOPS.way_out}"
        )
    model = io.loads(content, trusted=sorted(_ONLY_DATA))
    rows = np.zeros((1, model.n_features_in_), np.float32)
    options = {id(model): {"zipmap": False}} if hasattr(model, "classes_") else None
    return Converted(to_onnx(model, rows, target_opset=_SKLEARN_OPSET, options=options).SerializeToString())


def _inputs(features: int) -> list[tuple[str, Any]]:
    from onnxmltools.convert.common.data_types import FloatTensorType

    return [("features", FloatTensorType([None, features]))]
