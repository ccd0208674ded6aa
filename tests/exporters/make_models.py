"""Write what the usual exporters write by default into a folder: run by `make models-table` in their
environment.

    python -m tests.exporters.make_models FOLDER
"""

from __future__ import annotations

import json
import logging
import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

DRAW = np.random.default_rng(1)
X = DRAW.standard_normal((600, 20)).astype(np.float32)
X64 = X.astype(np.float64)
RETURNS = X[:, 0] - 0.5 * X[:, 1] + 0.1 * DRAW.standard_normal(600)
UP = (RETURNS > 0).astype(int)
CLASSES = np.digitize(RETURNS, [-0.5, 0.5])
TEXTS = np.array(["down", "flat", "up"])[CLASSES]
HOLES = np.where(DRAW.random(X.shape) < 0.2, np.nan, X).astype(np.float32)
NO_ZIP_MAP = {"zipmap": False}
TREES = {"n_estimators": 30, "n_jobs": 1}
TREES_OPSET = {"target_opset": {"": 18, "ai.onnx.ml": 3}}
OPSET_15 = {"": 15, "ai.onnx.ml": 3}
PACKAGES = {
    "sklearn": ("scikit-learn", "skl2onnx"),
    "lightgbm": ("lightgbm", "onnxmltools"),
    "xgboost": ("xgboost", "onnxmltools"),
    "catboost": ("catboost",),
    "torch": ("torch", "onnxscript"),
    "script": ("torch",),
    "keras": ("keras", "torch"),
    "quantised": ("onnxruntime", "onnxconverter-common"),
}
"""How the names of an exporter's files begin, and the packages that it is. `torch` is torch.onnx.export as it
is by default, `script` the same with dynamo=False."""


class Folder:
    """Where the files go; an exporter that fails is remembered with its words."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failed: dict[str, str] = {}

    def save(self, name: str, make: Callable[[], Any]) -> None:
        """Write the model that `make` gives."""
        self.export(name, lambda path: Path(path).write_bytes(make().SerializeToString()))

    def export(self, name: str, export: Callable[[str], Any]) -> None:
        """Have `export` write the file of that name."""
        try:
            export(str(self.path / f"{name}.onnx"))
        except Exception as error:  # noqa: BLE001  whatever the exporter raises goes into the table
            words = textwrap.shorten(str(error), 70, placeholder=" ...")
            self.failed[name] = f"{type(error).__name__}: {words}"


def sklearn_models(folder: Folder) -> None:
    """scikit-learn, by skl2onnx's to_onnx."""
    from skl2onnx import to_onnx
    from sklearn import cluster, ensemble, linear_model, neural_network
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def save(name: str, model: Any, data: Any = X, **options: Any) -> None:
        folder.save(f"sklearn_{name}", lambda: to_onnx(model, data[:1], **options))

    logistic, forest = linear_model.LogisticRegression, ensemble.RandomForestClassifier
    save("LogisticRegression", logistic().fit(X, UP))
    save("LogisticRegression of text", logistic().fit(X, TEXTS))
    save("LogisticRegression without ZipMap", logistic().fit(X, UP), options=NO_ZIP_MAP)
    save("LogisticRegression of float64", logistic().fit(X64, UP), X64)
    save("Ridge", linear_model.Ridge().fit(X, RETURNS))
    save("Ridge of float64", linear_model.Ridge().fit(X64, RETURNS), X64)
    save("RandomForestClassifier", forest(30, max_depth=6).fit(X, CLASSES))
    save("RandomForestClassifier without ZipMap", forest(30, max_depth=6).fit(X, CLASSES), options=NO_ZIP_MAP)
    save("RandomForestRegressor", ensemble.RandomForestRegressor(30, max_depth=6).fit(X, RETURNS))
    save("GradientBoostingRegressor", ensemble.GradientBoostingRegressor(n_estimators=30).fit(X, RETURNS))
    histogram = ensemble.HistGradientBoostingClassifier(max_iter=30).fit(HOLES, UP)
    save("HistGradientBoostingClassifier", histogram, **TREES_OPSET)
    mlp = neural_network.MLPClassifier(hidden_layer_sizes=(16,), max_iter=30)
    save("scaler and MLPClassifier", make_pipeline(StandardScaler(), mlp).fit(X, CLASSES))
    regressor = neural_network.MLPRegressor(hidden_layer_sizes=(16,), max_iter=30)
    save("scaler and MLPRegressor", make_pipeline(StandardScaler(), regressor).fit(X, RETURNS))
    save("imputer and Ridge", make_pipeline(SimpleImputer(), linear_model.Ridge()).fit(HOLES, RETURNS))
    save("IsolationForest", ensemble.IsolationForest(n_estimators=30).fit(X), **TREES_OPSET)
    save("KMeans", cluster.KMeans(5, n_init=1).fit(X))


def table_models(folder: Folder) -> None:
    """scikit-learn on a table, an input for each column; the venue as text, and as a number."""
    import pandas as pd
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numbers = ["spread", "imbalance"]
    for kind, values, tensor in (
        ("text", np.array(["XCME", "XEUR"]), StringTensorType),
        ("number", np.arange(2), Int64TensorType),
    ):
        encoder = ColumnTransformer([("n", StandardScaler(), numbers), ("c", OneHotEncoder(), ["venue"])])
        table = pd.DataFrame({"spread": X[:, 0], "imbalance": X[:, 1], "venue": values[UP]})
        pipe = make_pipeline(encoder, LogisticRegression()).fit(table, CLASSES)
        types = [(name, FloatTensorType([None, 1])) for name in numbers] + [("venue", tensor([None, 1]))]
        convert = partial(convert_sklearn, pipe, initial_types=types, options=NO_ZIP_MAP)
        folder.save(f"sklearn_table with a column of {kind}", convert)


def tree_models(folder: Folder) -> None:
    """LightGBM and XGBoost by onnxmltools, CatBoost by itself."""
    import lightgbm
    import onnxmltools
    import xgboost
    from catboost import CatBoostClassifier, CatBoostRegressor
    from onnxmltools.convert.common.data_types import FloatTensorType

    types = [("input", FloatTensorType([None, 20]))]
    light = partial(onnxmltools.convert_lightgbm, initial_types=types, target_opset=15)
    extreme = partial(onnxmltools.convert_xgboost, initial_types=types)
    for name, target in (("Classifier of 2", UP), ("Classifier of 3", CLASSES), ("Regressor", RETURNS)):
        kind = name.split()[0]
        of_light = getattr(lightgbm, f"LGBM{kind}")(verbose=-1, **TREES).fit(HOLES, target)
        of_extreme = getattr(xgboost, f"XGB{kind}")(**TREES).fit(HOLES, target)
        cat = (CatBoostClassifier if kind == "Classifier" else CatBoostRegressor)(
            iterations=30, verbose=False, allow_writing_files=False, thread_count=1
        ).fit(X, target)
        folder.save(f"lightgbm_{name}", partial(light, of_light))
        folder.save(f"xgboost_{name}", partial(extreme, of_extreme))
        folder.export(f"catboost_{name}", partial(cat.save_model, format="onnx"))
        if name == "Classifier of 3":
            folder.save(f"lightgbm_{name} without ZipMap", partial(light, of_light, zipmap=False))
        if name == "Regressor":
            folder.save("lightgbm_Booster", partial(light, of_light.booster_))


def tree_pipelines(folder: Folder) -> None:
    """LightGBM and XGBoost behind a scaler, by skl2onnx with their converters registered."""
    import lightgbm
    import xgboost
    from onnxmltools.convert.lightgbm.operator_converters.LightGbm import convert_lightgbm
    from onnxmltools.convert.xgboost.operator_converters.XGBoost import convert_xgboost
    from skl2onnx import to_onnx, update_registered_converter
    from skl2onnx.common.shape_calculator import calculate_linear_classifier_output_shapes as shapes
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    allowed = {"nocl": [True, False], "zipmap": [True, False, "columns"]}
    light, extreme = lightgbm.LGBMClassifier(verbose=-1, **TREES), xgboost.XGBClassifier(**TREES)
    for prefix, model, alias, convert in (
        ("lightgbm", light, "LightGbmLGBMClassifier", convert_lightgbm),
        ("xgboost", extreme, "XGBoostXGBClassifier", convert_xgboost),
    ):
        update_registered_converter(type(model), alias, shapes, convert, options=allowed)
        pipe = make_pipeline(StandardScaler(), model).fit(X, CLASSES)
        for name, options in (
            ("scaler and Classifier", None),
            ("scaler and Classifier, a column a class", {id(pipe): {"zipmap": "columns"}}),
        ):
            written = partial(to_onnx, pipe, X[:1], target_opset=OPSET_15, options=options)
            folder.save(f"{prefix}_{name}", written)


def torch_models(folder: Folder) -> None:
    """PyTorch, by torch.onnx.export: as it is by default since 2.9, and by its older way."""
    import torch
    from tests.exporters import torch_modules as modules
    from torch import nn
    from torch.export import Dim

    torch.manual_seed(0)
    batch, steps = Dim("batch"), Dim("T", min=8)
    rows, window, numbers = torch.randn(2, 20), torch.randn(2, 50, 16), torch.tensor([3, 7])
    mlp, first = modules.perceptron(nn.Softmax(-1)), modules.Recurrent(nn.LSTM, time_first=True)
    half, double, state = modules.perceptron().half(), modules.Scalar().double(), torch.zeros(2, 32)
    x = {"x": {0: batch}}
    cases: tuple[tuple[str, Any, Sequence[Any], Mapping[str, Mapping[int, Any]]], ...] = (
        ("MLP, batch fixed", mlp, (rows[:1],), {}),
        ("MLP", mlp, (rows,), x),
        ("MLP of float16", half, (rows.half(),), x),
        ("MLP of float64", double, (rows.double(),), x),
        ("MLP, one value a row", modules.Scalar(), (rows,), x),
        ("MLP, no batch axis", nn.Linear(20, 3), (rows[0],), {}),
        ("MLP of 20,000 features", nn.Linear(20_000, 1), (torch.randn(2, 20_000),), x),
        ("MLP that reads NaN", modules.Masked(), (rows,), x),
        ("LSTM", modules.Recurrent(nn.LSTM), (window,), x),
        ("LSTM, time first", first, (window.transpose(0, 1),), {"x": {1: batch}}),
        ("GRU", modules.Recurrent(nn.GRU), (window,), x),
        ("TCN", modules.Convolutions(), (window,), x),
        ("TCN, steps free", modules.Convolutions(), (window,), {"x": {0: batch, 1: steps}}),
        ("GRU cell, state in and out", modules.Step(), (window[:, 0], state), {**x, "state": {0: batch}}),
        ("attention", modules.Attention(), (window,), x),
        ("DeepLOB", modules.DeepLob(), (torch.randn(2, 1, 100, 40),), x),
        (
            *("book and trades", modules.BookAndTrades(), (rows, rows[:, :12])),
            {"book": {0: batch}, "trades": {0: batch}},
        ),
        (
            *("embedding, two outputs", modules.Known(), (numbers, rows)),
            {"instrument": {0: batch}, "x": {0: batch}},
        ),
        ("all instruments at once", modules.Ranks(), (torch.randn(8, 20),), {"x": {0: Dim("instruments")}}),
    )
    for name, model, given, axes in cases:
        shapes = tuple(dict(dims) for dims in axes.values()) or None
        named = {key: {place: dim.__name__ for place, dim in dims.items()} for key, dims in axes.items()}
        by_name = {"input_names": list(axes), "dynamic_axes": named} if axes else {}
        new = {"dynamo": True, "verbose": False, "external_data": False, "dynamic_shapes": shapes}
        for prefix, how in (("torch", new), ("script", {"dynamo": False, **by_name})):
            export = partial(torch.onnx.export, model.eval(), tuple(given), **how)
            folder.export(f"{prefix}_{name}", export)


def keras_models(folder: Folder) -> None:
    """Keras on PyTorch, by Model.export."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras
    from keras import layers

    features = keras.Input((20,), name="features")
    hidden = layers.Dense(32, "relu")(layers.Normalization(mean=0.0, variance=1.0)(features))
    classes = layers.Dense(3, "softmax")(hidden)
    lstm = [keras.Input((50, 16)), layers.LSTM(32), layers.Dense(3, "softmax")]
    for name, model in (
        ("MLP", keras.Model(features, classes)),
        ("MLP, two outputs", keras.Model(features, {"p": classes, "return": layers.Dense(1)(hidden)})),
        ("LSTM", keras.Sequential(lstm)),
    ):
        model(np.zeros((2, *model.input_shape[1:]), np.float32))
        export = partial(model.export, format="onnx", verbose=False)
        folder.export(f"keras_{name}", export)


def quantised_models(folder: Folder) -> None:
    """ONNX Runtime's quantisers and the converter to float16, over what torch_models has written."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static

    class Rows(CalibrationDataReader):  # type: ignore[misc]
        """Some batches for one input."""

        def __init__(self, name: str, *shape: int) -> None:
            draw = np.random.default_rng(2)
            self._batches = iter([{name: draw.standard_normal(shape, np.float32)} for _ in range(32)])

        def get_next(self) -> Any:
            return next(self._batches, None)

    mlp, lstm, tcn = (folder.path / f"script_{name}.onnx" for name in ("MLP", "LSTM", "TCN"))
    weights = {"weight_type": QuantType.QInt8}
    for name, quantise in (
        ("MLP, int8 dynamic", partial(quantize_dynamic, mlp, **weights)),
        ("LSTM, int8 dynamic", partial(quantize_dynamic, lstm, **weights)),
        ("MLP, int8 static", partial(quantize_static, mlp, calibration_data_reader=Rows("x", 8, 20))),
        ("TCN, int8 static", partial(quantize_static, tcn, calibration_data_reader=Rows("x", 8, 50, 16))),
    ):
        folder.export(f"quantised_{name}", quantise)
    for name, options in (("MLP, float16", {}), ("MLP, float16 inside", {"keep_io_types": True})):
        folder.save(f"quantised_{name}", partial(_halved, mlp, options))


def _halved(path: Path, options: Mapping[str, bool]) -> Any:
    import onnx
    from onnxconverter_common import float16

    return float16.convert_float_to_float16(onnx.load(path), **options)


def main() -> None:
    """See the module."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    folder = Folder(Path(sys.argv[1]))
    folder.path.mkdir(parents=True, exist_ok=True)
    for write in (
        *(sklearn_models, table_models, tree_models, tree_pipelines),
        *(torch_models, keras_models, quantised_models),
    ):
        write(folder)
    versions = {
        prefix: ", ".join(f"{name} {version(name).partition('+')[0]}" for name in packages)
        for prefix, packages in PACKAGES.items()
    }
    versions["script"] += ", dynamo=False"
    content = {"versions": versions, "failed": folder.failed}
    (folder.path / "exported.json").write_text(json.dumps(content, indent=1), "utf-8")


if __name__ == "__main__":
    main()
