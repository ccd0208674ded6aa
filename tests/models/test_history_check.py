"""Steps are held against whole windows: one that is not its window is found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest

from sigd.models.errors import BackendFailed
from sigd.models.history import StepWindows
from sigd.models.history_check import check_steps
from sigd.models.reading import HistoryOptions, ReadOptions
from sigd.models.registry import open_backend

if TYPE_CHECKING:
    from tests.conftest import ModelMaker

HISTORY = ReadOptions(history=HistoryOptions())


def test_check_passes_where_steps_answer_as_windows_do(models: ModelMaker) -> None:
    backend = open_backend(models.lstm(), "onnxruntime", batch_rows_max=2, reading=HISTORY)
    check_steps(backend)
    backend.close()


def test_check_finds_a_window_that_is_another_one(
    models: ModelMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = open_backend(models.lstm(), "onnxruntime", batch_rows_max=2, reading=HISTORY)
    load = StepWindows.load

    def late(self: StepWindows, place: int, into: npt.NDArray[np.float32]) -> None:
        load(self, place, into)
        into[:4] = into[4:8]

    monkeypatch.setattr(StepWindows, "load", late)
    with pytest.raises(BackendFailed, match="step 5 on onnxruntime answers other bits than its whole window"):
        check_steps(backend)
    backend.close()
