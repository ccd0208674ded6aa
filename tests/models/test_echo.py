"""The backend that runs no model: what it answers, what it calls itself, and that it is never chosen
unasked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from sigd.models.backend import Backend
from sigd.models.registry import make_backend, open_backend

if TYPE_CHECKING:
    from tests.conftest import ModelMaker

ROWS = 5


def answered(backend: Backend, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random features in, and what stands in the outputs then."""
    features = np.random.default_rng(seed).standard_normal((rows, backend.spec.features), np.float32)
    backend.inputs[:rows] = features
    assert backend.submit(rows)
    return features, backend.outputs[:rows]


@pytest.mark.parametrize("rows", range(1, ROWS + 1))
def test_it_answers_with_the_first_features_of_each_row(models: ModelMaker, rows: int) -> None:
    backend = open_backend(models.mlp(features=8, outputs=3), "echo", batch_rows_max=ROWS)
    for seed in (1, 2):
        features, outputs = answered(backend, rows, seed)
        np.testing.assert_array_equal(outputs, features[:, :3])


def test_outputs_beyond_the_features_are_zero(models: ModelMaker) -> None:
    backend = open_backend(models.mlp(features=2, outputs=3), "echo", batch_rows_max=ROWS)
    features, outputs = answered(backend, ROWS)
    np.testing.assert_array_equal(outputs[:, :2], features)
    assert not outputs[:, 2].any()


def test_it_is_what_a_model_that_copies_answers(models: ModelMaker) -> None:
    path = models.copied()
    echo, oracle = (open_backend(path, name, batch_rows_max=ROWS) for name in ("echo", "oracle"))
    np.testing.assert_array_equal(answered(echo, ROWS)[1], answered(oracle, ROWS)[1])


def test_a_fixed_batch_is_its_largest(models: ModelMaker) -> None:
    backend = open_backend(models.mlp(batch=3), "echo", batch_rows_max=64)
    assert backend.batch_rows_max == len(backend.inputs) == 3


def test_clients_are_not_told_that_it_is_the_model(models: ModelMaker) -> None:
    path = models.mlp()
    assert make_backend(path).spec.name == path.stem
    assert make_backend(path, "echo").spec.name == "echo"


def test_it_says_that_its_answers_are_no_signals(
    models: ModelMaker, caplog: pytest.LogCaptureFixture
) -> None:
    open_backend(models.mlp(), "echo")
    assert "its answers are no signals" in caplog.text
