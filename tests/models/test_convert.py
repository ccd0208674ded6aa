"""`sigd convert` with the converters that it needs: pip install 'sigd[convert]'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sigd.models.backend import Float32Array
from sigd.models.convert import convert
from sigd.models.errors import ModelRefused
from sigd.models.registry import open_backend

for package in ("lightgbm", "xgboost", "catboost", "onnxmltools", "skl2onnx", "skops"):
    pytest.importorskip(package, reason="needs the converters: pip install 'sigd[convert]'")

# Two decimals: most thresholds lie between, where no float32 is.
DRAW = np.random.default_rng(0)
X = np.round(DRAW.standard_normal((600, 5)), 2)
RETURNS = X[:, 0] - 0.5 * X[:, 1]
UP = (RETURNS > 0).astype(int)


def answers(path: Path, rows: Any) -> Float32Array:
    """Of the converted model, opened as `sigd serve` does."""
    onnx = path.with_suffix(".onnx")
    onnx.write_bytes(convert(path).content)
    backend = open_backend(onnx, "onnxruntime", 8)
    given = []
    for row in np.asarray(rows, np.float32):
        backend.inputs[0] = row
        backend.submit(1)
        given.append(backend.outputs[0].copy())
    backend.close()
    return np.array(given)


def test_lightgbm_keeps_every_float32_row_on_its_side(tmp_path: Path) -> None:
    """Of rows on the thresholds themselves, and beside them, a plain conversion moves one in eight."""
    import lightgbm

    booster = lightgbm.LGBMRegressor(n_estimators=20, verbose=-1, n_jobs=1).fit(X, RETURNS).booster_
    path = tmp_path / "m.txt"
    booster.save_model(str(path))
    lines = [line for line in path.read_text().splitlines() if line.startswith("threshold=")]
    values = {float(value) for line in lines for value in line.removeprefix("threshold=").split()}
    thresholds = np.array(sorted(value for value in values if abs(value) > 1e-30), np.float32)
    beside = np.concatenate([np.nextafter(thresholds, np.float32(side)) for side in (-9, 9)])
    rows = np.tile(np.concatenate([thresholds, beside])[:, None], (1, 5))
    np.testing.assert_allclose(
        answers(path, rows)[:, 0], booster.predict(rows.astype(np.float64)), rtol=1e-5, atol=1e-5
    )
    converted = convert(path)
    assert 0 < converted.inexact <= converted.thresholds == sum(len(line.split()) for line in lines)


def test_lightgbm_takes_missing_values(tmp_path: Path) -> None:
    import lightgbm

    holes = np.where(DRAW.random(X.shape) < 0.2, np.nan, X)
    booster = lightgbm.LGBMClassifier(n_estimators=10, verbose=-1, n_jobs=1).fit(holes, UP).booster_
    booster.save_model(str(tmp_path / "m.txt"))
    found = answers(tmp_path / "m.txt", holes[:64])
    np.testing.assert_allclose(found[:, 2], booster.predict(holes[:64].astype(np.float32)), atol=1e-5)
    assert (found[:, 0] == (found[:, 2] > 0.5)).all()


@pytest.mark.parametrize("ending", ["json", "ubj"])
def test_xgboost_answers_as_it_did(tmp_path: Path, ending: str) -> None:
    import xgboost

    model = xgboost.XGBRegressor(n_estimators=10, n_jobs=1).fit(X, RETURNS)
    path = tmp_path / f"m.{ending}"
    model.save_model(path)
    np.testing.assert_allclose(answers(path, X[:64])[:, 0], model.predict(X[:64]), atol=1e-5)


def test_catboost_answers_as_it_did(tmp_path: Path) -> None:
    import catboost

    model = catboost.CatBoostRegressor(
        iterations=10, verbose=False, allow_writing_files=False, thread_count=1
    )
    path = tmp_path / "m.cbm"
    model.fit(X.astype(np.float32), RETURNS).save_model(str(path))
    np.testing.assert_allclose(
        answers(path, X[:64])[:, 0], model.predict(X[:64].astype(np.float32)), atol=1e-5
    )


def test_scikit_learn_answers_as_it_did(tmp_path: Path) -> None:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from skops import io

    rows = X[:64].astype(np.float32)
    path = tmp_path / "m.skops"
    ridge = make_pipeline(StandardScaler(), Ridge()).fit(X, RETURNS)
    io.dump(ridge, path)
    np.testing.assert_allclose(answers(path, rows)[:, 0], ridge.predict(rows), atol=1e-5)
    forest = RandomForestClassifier(10, max_depth=4, random_state=0).fit(rows, UP[:64])
    io.dump(forest, path)
    np.testing.assert_allclose(answers(path, rows)[:, 1:], forest.predict_proba(rows), atol=1e-5)


def test_a_scikit_learn_file_that_could_run_code_is_not_opened(tmp_path: Path) -> None:
    from sklearn.preprocessing import FunctionTransformer
    from skops import io

    path = tmp_path / "m.skops"
    io.dump(FunctionTransformer(answers), path)
    with pytest.raises(ModelRefused, match=r"types that could run code.*to_onnx"):
        convert(path)
