"""Windows of the last steps: what a list of all steps would give, without keeping them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigd.models.errors import ModelRefused
from sigd.models.history import NO_PLACE, StepWindows, Window, window_of
from sigd.models.reading import HistoryOptions, ReadOptions
from sigd.models.spec import read_spec
from sigd.models.zoo.catalogue import zoo_file

HISTORY = ReadOptions(history=HistoryOptions())

Event = tuple[int, str]
EVENTS = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from(["step", "step", "step", "step", "reset", "give up"])),
    max_size=80,
)


@given(
    steps=st.integers(1, 5),
    features=st.integers(1, 3),
    axis=st.sampled_from([1, 2]),
    most=st.integers(1, 4),
    events=EVENTS,
)
def test_windows_are_the_last_steps_of_each_instrument(
    steps: int, features: int, axis: int, most: int, events: list[Event]
) -> None:
    windows = StepWindows(Window(steps, features, axis), most)
    told: dict[int, list[npt.NDArray[np.float32]]] = {}
    into = np.empty(steps * features, np.float32)
    for number, (instrument, what) in enumerate(events):
        if what == "give up":
            windows.give_up(instrument)
            told.pop(instrument, None)
            continue
        row = np.arange(features, dtype=np.float32) + 100 * number
        place = windows.store(instrument, row, reset=what == "reset")
        if instrument not in told and len(told) == most:
            assert place == NO_PLACE
            continue
        told[instrument] = [*(told.get(instrument, []) if what == "step" else []), row]
        assert windows.is_warm(place) == (len(told[instrument]) >= steps)
        if windows.is_warm(place):
            windows.load(place, into)
            whole = np.stack(told[instrument][-steps:])
            assert np.array_equal(into, (whole if axis == 1 else whole.T).reshape(-1))
    assert windows.instruments == len(told)
    assert windows.warming_up == sum(len(rows) < steps for rows in told.values())


def test_nothing_is_allocated_after_the_first_step_of_an_instrument() -> None:
    window = Window(50, 100)
    assert window.memory_bytes(1000) == 40_000_000
    windows = StepWindows(window, 8)
    memory = windows.rows
    row = np.ones(100, np.float32)
    assert {windows.store(instrument, row) for instrument in range(8)} == set(range(8))
    assert windows.store(8, row) == NO_PLACE
    for _ in range(200):
        windows.store(3, row)
    assert windows.rows is memory
    assert memory.nbytes == window.memory_bytes(8)


def test_window_is_read_along_the_axis_that_is_named() -> None:
    assert window_of("m", (50, 100), HistoryOptions()) == Window(50, 100)
    assert window_of("m", (100, 50), HistoryOptions(time_axis=2)) == Window(50, 100, 2)
    assert window_of("m", (50, 100), HistoryOptions(steps=50)) == Window(50, 100)
    with pytest.raises(ModelRefused, match="m: looks at 50 steps, and the history table says 49"):
        window_of("m", (50, 100), HistoryOptions(steps=49))
    with pytest.raises(ModelRefused, match=r"its input is \[batch, 8\], expected \[batch, steps, features\]"):
        window_of("m", (8,), HistoryOptions())


def test_window_wider_than_a_request_is_served_with_history_only(tmp_path: Path) -> None:
    path = tmp_path / "lstm_b.onnx"
    path.write_bytes(zoo_file("lstm_b"))
    with pytest.raises(ModelRefused, match="25,000 features per row, expected at most 16,373"):
        read_spec(path)
    assert read_spec(path, options=HISTORY).window == Window(100, 250)
