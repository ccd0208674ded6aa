"""Native files of gradient-boosted trees as ONNX, by the converters that their projects keep.

Only formats that hold data are read: LightGBM's text, XGBoost's JSON and UBJSON, CatBoost's cbm. A pickle
runs
code when it is opened, so none is.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from sigd.models.errors import BackendUnavailable, ModelRefused
from sigd.models.native_files import CATBOOST, LIGHTGBM, XGBOOST, no_onnx_model, recognise
from sigd.models.onnx.trees import inexact_in_float32
from sigd.models.trusted_file import read_file

_OPSET: Final = 15
INSTALL: Final = "pip install 'sigd[convert]'"


@dataclass(frozen=True, slots=True)
class Converted:
    """An ONNX model.

    Attributes:
        content: serialised.
        thresholds: values that the trees compare features with, where the format tells them; else 0.
        inexact: those of them that are no float32, see `sigd.models.onnx.trees.Trees`.
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
    converters = {LIGHTGBM: _lightgbm, XGBOOST: _xgboost, CATBOOST: _catboost}
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

    text = content.decode("utf-8")
    booster = lightgbm.Booster(model_str=text)
    model = onnxmltools.convert_lightgbm(
        booster, initial_types=_inputs(booster.num_feature()), target_opset=_OPSET, zipmap=False
    )
    values = [
        float(value)
        for line in text.splitlines()
        if line.startswith("threshold=")
        for value in line.partition("=")[2].split()
    ]
    thresholds = np.array(values, np.float64)
    return Converted(model.SerializeToString(), len(values), inexact_in_float32(thresholds))


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


def _inputs(features: int) -> list[tuple[str, Any]]:
    from onnxmltools.convert.common.data_types import FloatTensorType

    return [("features", FloatTensorType([None, features]))]
