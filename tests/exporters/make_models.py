"""Write what the usual exporters write by default into a folder: run by `make models-table` in their
environment.

python make_models.py FOLDER
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

DRAW = np.random.default_rng(1)
X = DRAW.standard_normal((600, 20)).astype(np.float32)
RETURNS = X[:, 0] - 0.5 * X[:, 1] + 0.1 * DRAW.standard_normal(600)
UP = (RETURNS > 0).astype(int)
CLASSES = np.digitize(RETURNS, [-0.5, 0.5])
TEXTS = np.array(["down", "flat", "up"])[CLASSES]
HOLES = np.where(DRAW.random(X.shape) < 0.2, np.nan, X).astype(np.float32)


def sklearn_models(folder: Path) -> None:
    """scikit-learn, by skl2onnx's to_onnx."""
    from skl2onnx import to_onnx
    from sklearn.cluster import KMeans
    from sklearn.ensemble import IsolationForest, RandomForestClassifier, RandomForestRegressor
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def save(name: str, model: Any, data: Any = X, **options: Any) -> None:
        content = to_onnx(model, data[:1], **options).SerializeToString()
        (folder / f"sklearn_{name}.onnx").write_bytes(content)

    save("LogisticRegression", LogisticRegression().fit(X, UP))
    save("LogisticRegression of text", LogisticRegression().fit(X, TEXTS))
    save("LogisticRegression without ZipMap", LogisticRegression().fit(X, UP), options={"zipmap": False})
    save("Ridge", Ridge().fit(X, RETURNS))
    save("Ridge of float64", Ridge().fit(X.astype(np.float64), RETURNS), X.astype(np.float64))
    save("RandomForestClassifier", RandomForestClassifier(30, max_depth=6).fit(X, CLASSES))
    save("RandomForestRegressor", RandomForestRegressor(30, max_depth=6).fit(X, RETURNS))
    save("scaler and MLPClassifier", make_pipeline(StandardScaler(), MLPClassifier((16,))).fit(X, CLASSES))
    save("imputer and Ridge", make_pipeline(SimpleImputer(), Ridge()).fit(HOLES, RETURNS))
    save("IsolationForest", IsolationForest(n_estimators=30).fit(X), target_opset={"": 18, "ai.onnx.ml": 3})
    save("KMeans", KMeans(5, n_init=1).fit(X))


def tree_models(folder: Path) -> None:
    """LightGBM and XGBoost by onnxmltools, CatBoost by itself."""
    import lightgbm
    import onnxmltools
    import xgboost
    from catboost import CatBoostClassifier, CatBoostRegressor
    from onnxmltools.convert.common.data_types import FloatTensorType

    types = [("input", FloatTensorType([None, 20]))]
    for name, target in (("Classifier of 2", UP), ("Classifier of 3", CLASSES), ("Regressor", RETURNS)):
        kind = name.split()[0]
        light = getattr(lightgbm, f"LGBM{kind}")(n_estimators=30, verbose=-1, n_jobs=1).fit(HOLES, target)
        converted = onnxmltools.convert_lightgbm(light, initial_types=types, target_opset=15)
        (folder / f"lightgbm_{name}.onnx").write_bytes(converted.SerializeToString())
        extreme = getattr(xgboost, f"XGB{kind}")(n_estimators=30, n_jobs=1).fit(HOLES, target)
        converted = onnxmltools.convert_xgboost(extreme, initial_types=types)
        (folder / f"xgboost_{name}.onnx").write_bytes(converted.SerializeToString())
        cat = (CatBoostClassifier if kind == "Classifier" else CatBoostRegressor)(
            iterations=30, verbose=False, allow_writing_files=False, thread_count=1
        )
        with tempfile.TemporaryDirectory() as place:
            cat.fit(X, target).save_model(f"{place}/m.onnx", format="onnx")
            (folder / f"catboost_{name}.onnx").write_bytes(Path(place, "m.onnx").read_bytes())


def torch_models(folder: Path) -> None:
    """PyTorch, by torch.onnx.export as it is by default since 2.9."""
    import torch
    from torch import nn
    from torch.export import Dim

    torch.manual_seed(0)

    class Two(nn.Module):  # type: ignore[misc]
        """An instrument's number and features in; probabilities and a return out."""

        def __init__(self) -> None:
            super().__init__()
            self.known, self.classes, self.value = nn.Embedding(100, 8), nn.Linear(28, 3), nn.Linear(28, 1)

        def forward(self, instrument: Any, x: Any) -> Any:
            joined = torch.cat([self.known(instrument), x], -1)
            return self.classes(joined).softmax(-1), self.value(joined)

    class Recurrent(nn.Module):  # type: ignore[misc]
        """A window in, three classes out."""

        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(16, 32, batch_first=True), nn.Linear(32, 3)

        def forward(self, x: Any) -> Any:
            return self.head(self.lstm(x)[0][:, -1])

    batch = Dim("batch")
    mlp = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 3))
    half = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 3)).half()
    rows, window = torch.randn(2, 20), torch.randn(2, 50, 16)
    numbers = torch.tensor([3, 7])
    for name, model, given, shapes in (
        ("MLP, batch fixed", mlp, (rows[:1],), None),
        ("MLP", mlp, (rows,), ({0: batch},)),
        ("MLP of float16", half, (rows.half(),), ({0: batch},)),
        ("LSTM", Recurrent(), (window,), ({0: batch},)),
        ("embedding, two outputs", Two(), (numbers, rows), ({0: batch}, {0: batch})),
    ):
        path = str(folder / f"torch_{name}.onnx")
        torch.onnx.export(
            model.eval(), given, path, dynamo=True, verbose=False, external_data=False, dynamic_shapes=shapes
        )


def main() -> None:
    """See the module."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    sklearn_models(folder)
    tree_models(folder)
    torch_models(folder)
    names = {
        "sklearn": ("scikit-learn", "skl2onnx"),
        "lightgbm": ("lightgbm", "onnxmltools"),
        "xgboost": ("xgboost", "onnxmltools"),
        "catboost": ("catboost",),
        "torch": ("torch",),
    }
    versions = {
        prefix: ", ".join(f"{name} {version(name).partition('+')[0]}" for name in packages)
        for prefix, packages in names.items()
    }
    (folder / "versions.json").write_text(json.dumps(versions), "utf-8")


if __name__ == "__main__":
    main()
