"""Sliding windows: every step is answered with the bits of its whole window, whatever was advanced before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from tests.models.native.conftest import run_plan

from sigd.models.errors import BackendFailed
from sigd.models.history import StepWindows, Window
from sigd.models.history_check import check_steps
from sigd.models.manifest import PrecisionName
from sigd.models.native import backend as native
from sigd.models.native.backend import NativeBackend, kernels
from sigd.models.native.lowering.precision import to_bf16
from sigd.models.native.plan import NONE, Binary, Function, Kind, Plan, Reduce
from sigd.models.reading import HistoryOptions, ReadOptions
from sigd.models.registry import open_backend
from sigd.models.zoo.catalogue import zoo_file

if TYPE_CHECKING:
    from tests.conftest import ModelMaker

    from sigd.models.native._kernels import Engine, SlidingWindows

Array = npt.NDArray[Any]
INSTRUMENTS = 3
PRECISIONS: Final[list[PrecisionName]] = ["fp32", "fp16", "bf16", "int8"]
HISTORY = ReadOptions(history=HistoryOptions())


class Builder:
    """A plan that grows layer by layer over a window, with drawn weights.

    Args:
        precision: of the recurrent layers' weights.
    """

    def __init__(self, steps: int, features: int, seed: int, precision: PrecisionName = "fp32") -> None:
        self.steps = steps
        self.precision = precision
        self.width = features
        self.plan = Plan([steps * features, 1])
        self.value = 0
        self._draw = np.random.default_rng(seed)

    def floats(self, *shape: int) -> Array:
        return (self._draw.standard_normal(shape) / 2).astype(np.float32)

    def add(
        self, kind: Kind, width: int, tensors: Sequence[Array] = (), params: Sequence[int] = (), *more: int
    ) -> None:
        """Of every step `width` values, from those of the step before it in the plan and from `more`."""
        inputs = (self.value, *more)
        self.value = self.plan.add(kind, inputs, self.steps * width, tuple(tensors), tuple(params), (1e-5,))
        self.width = width

    def weights(self, *shape: int) -> Array:
        drawn = self.floats(*shape)
        match self.precision:
            case "fp16":
                return drawn.astype(np.float16)
            case "bf16":
                return to_bf16(drawn)
            case "int8":
                return np.clip(np.round(drawn * 60), -127, 127).astype(np.int8)
            case _:
                return drawn

    def repeated(self, width: int) -> Array:
        return np.tile(self.floats(width), self.steps)

    def recurrent(
        self,
        kind: Kind,
        hidden: int,
        *,
        each: bool = True,
        reverse: bool = False,
        resets_first: bool = False,
    ) -> None:
        gates = (4 if kind is Kind.LSTM else 3) * hidden
        tensors: tuple[Array, ...] = (
            self.weights(self.width, gates),
            self.weights(hidden, gates),
            self.floats(gates),
            self.floats(gates),
        )
        if self.precision == "int8":
            tensors += (self.floats(gates) / 60, self.floats(gates) / 60)
        params = (self.steps, self.width, hidden, int(each), int(reverse), int(resets_first))
        width = hidden if each else -(-hidden // self.steps)
        self.add(kind, width, tensors, params)
        self.plan.widths[self.value] = self.steps * hidden if each else hidden
        self.width = hidden

    def layer(self, name: str, size: int) -> None:
        before, width = self.value, self.width
        if name in ("lstm", "gru", "gru, reset first"):
            kind = Kind.LSTM if name == "lstm" else Kind.GRU
            self.recurrent(kind, size, resets_first=name == "gru, reset first")
        elif name == "dense":
            self.add(
                Kind.DENSE,
                size,
                (self.floats(width, size), self.floats(size)),
                (width, size, Function.RELU, 1),
            )
        elif name == "tanh":
            self.add(Kind.MAP, width, (), (Function.TANH,))
        elif name == "affine":
            self.add(Kind.AFFINE, width, (self.repeated(width), self.repeated(width)))
        elif name == "constant":
            self.add(Kind.CONSTANT, width, (self.repeated(width),), (Binary.MUL, 0))
        elif name == "norm":
            self.add(Kind.LAYERNORM, width, (self.floats(width), self.floats(width)), (width, 0))
        elif name == "softmax":
            self.add(Kind.SOFTMAX, width, (), (width, 0))
        elif name == "reversed":
            index = np.arange(self.steps * width, dtype=np.uint32).reshape(self.steps, width)[:, ::-1]
            self.add(Kind.INDEX, width, (index.reshape(-1).copy(),), (0, self.steps * width, 0))
        elif name == "residual":
            self.recurrent(Kind.GRU, width)
            self.add(Kind.BINARY, width, (), (Binary.ADD,), before)

    def head(self, outputs: int, last: str) -> bytes:
        """A recurrent layer, of which the last state is read, and a dense one."""
        if last == "state":
            self.recurrent(Kind.LSTM, 5, each=False)
        else:
            self.recurrent(Kind.GRU, 5)
            start = 5 * (self.steps - 1)
            index = np.array([start + 4, start, NONE, start + 1, start + 2], np.uint32)
            if last == "copy":
                self.value = self.plan.add(Kind.COPY, (self.value,), 5, (), (start, 5, 0))
            else:
                self.value = self.plan.add(Kind.INDEX, (self.value,), 5, (index,), (0, 5, 0))
        tensors = (self.floats(5, outputs), self.floats(outputs))
        self.plan.add(Kind.DENSE, (self.value,), outputs, tensors, (5, outputs, Function.IDENTITY, 0))
        self.plan.ops[-1].out = 1
        self.plan.widths[1] = outputs
        return self.plan.encode()


class Followed:
    """Windows of a plan as a client's are kept, beside all steps in lists."""

    def __init__(self, engine: Engine, window: Window) -> None:
        self.sliding = engine.sliding(window.steps, window.time_axis)
        self.windows = StepWindows(window, INSTRUMENTS)
        self.told: dict[int, list[Array]] = {}
        self.outputs = engine.outputs
        self.follow()

    def follow(self) -> SlidingWindows:
        windows = self.windows
        # What lies in the memory of states means nothing.
        self.states = np.full((INSTRUMENTS, self.sliding.place_floats), np.nan, np.float32)
        made = self.sliding.windows(windows.rows, windows.stored, windows.begin, self.states)
        windows.follow_by(made)
        return made

    def store(self, instrument: int, row: Array, reset: bool) -> int:
        """Its place."""
        self.told[instrument] = [*([] if reset else self.told.get(instrument, [])), row]
        return self.windows.store(instrument, row, reset=reset)

    def step(self, instrument: int, row: Array, reset: bool) -> Array | None:
        """The answer; None while its window is not whole."""
        place = self.store(instrument, row, reset)
        answer = np.full(self.outputs, np.nan, np.float32)
        assert self.windows.stepped is not None
        whole = self.windows.stepped.answer(place, answer)
        assert (
            whole == self.windows.is_warm(place) == (len(self.told[instrument]) >= self.windows.window.steps)
        )
        return answer if whole else None


def windows_of(told: Sequence[Sequence[Array]], window: Window) -> Array:
    """Rows of a model, one for each window."""
    whole = np.stack([np.stack(rows) for rows in told])
    return np.ascontiguousarray(whole if window.time_axis == 1 else whole.transpose(0, 2, 1))


def stepped_through(
    plan: bytes, window: Window, events: list[tuple[int, str, int]], seed: int, name: str
) -> None:
    """Compare steps in the order of `events` with whole windows, on that instruction set."""
    rows = np.random.default_rng(seed).standard_normal((len(events), window.features)).astype(np.float32)
    followed = Followed(kernels().load(plan, name), window)
    stepped, whole = [], []
    for row, (instrument, what, advances) in zip(rows, events, strict=True):
        if what == "give up":
            followed.windows.give_up(instrument)
            followed.told.pop(instrument, None)
        elif what == "follow anew":
            followed.follow()
        elif what == "store":
            followed.store(instrument, row, reset=False)
        else:
            answer = followed.step(instrument, row, what == "reset")
            if answer is not None:
                stepped.append(answer)
                whole.append(followed.told[instrument][-window.steps :])
        for _ in range(advances):
            followed.sliding.advance()
    if whole:
        expected = run_plan(plan, windows_of(whole, window), name)
        assert np.stack(stepped).tobytes() == expected.tobytes(), name


EVENTS = st.lists(
    st.tuples(
        st.integers(0, INSTRUMENTS - 1),
        st.sampled_from(["step"] * 12 + ["reset", "give up", "follow anew"]),
        st.sampled_from([0, 0, 1, 2, 5, 50]),
    ),
    max_size=60,
)
LAYERS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *("lstm", "gru", "gru, reset first", "dense", "tanh", "affine", "constant", "norm"),
                *("softmax", "reversed", "residual"),
            ]
        ),
        st.integers(1, 40),
    ),
    max_size=4,
)


@given(
    steps=st.integers(2, 9),
    features=st.integers(1, 20),
    layers=LAYERS,
    last=st.sampled_from(["state", "copy", "index"]),
    precision=st.sampled_from(PRECISIONS),
    events=EVENTS,
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_step_has_the_bits_of_its_whole_window(
    steps: int,
    features: int,
    layers: list[tuple[str, int]],
    last: str,
    precision: PrecisionName,
    events: list[tuple[int, str, int]],
    seed: int,
) -> None:
    builder = Builder(steps, features, seed, precision)
    for name, size in layers:
        builder.layer(name, size)
    plan = builder.head(2, last)
    for name in kernels().instruction_sets():
        stepped_through(plan, Window(steps, features), events, seed, name)


def test_windows_that_are_behind_are_advanced_until_none_is() -> None:
    steps = 8
    followed = Followed(kernels().load(Builder(steps, 3, 0).head(1, "state")), Window(steps, 3))
    assert not followed.sliding.advance()
    for instrument in (0, 1):
        for _ in range(2 * steps):
            followed.step(instrument, np.ones(3, np.float32), reset=False)
    advances = 0
    while followed.sliding.advance():
        advances += 1
    # Each window took the steps that it has seen, at most six windows at a time; the next answer of each
    # instrument was prepared, and one was rehearsed.
    assert 2 * steps * (steps - 1) / 2 / 6 <= advances - 3 <= 2 * steps * (steps - 1) / 2
    followed.step(0, np.ones(3, np.float32), reset=False)
    assert sum(followed.sliding.advance() for _ in range(steps)) <= 3 + 2


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("kind", "resets_first", "gates_floats"),
    [(Kind.LSTM, False, 32), (Kind.GRU, False, 16), (Kind.GRU, True, 16)],
)
def test_answer_reads_the_gates_that_were_prepared_and_else_none(
    kind: Kind, resets_first: bool, gates_floats: int, precision: PrecisionName
) -> None:
    steps = 4
    builder = Builder(steps, 3, 0, precision)
    builder.recurrent(kind, 5, each=False, resets_first=resets_first)
    builder.plan.append(Kind.MAP, builder.value, 1, (Function.IDENTITY,))
    builder.plan.widths[1] = 5
    plan = builder.plan.encode()
    rows = np.random.default_rng(1).standard_normal((3 * steps, 3)).astype(np.float32)
    for name in kernels().instruction_sets():
        for is_prepared in (True, False):
            for is_spoilt in (True, False):
                followed = Followed(kernels().load(plan, name), Window(steps, 3))
                for row in rows[:-1]:
                    followed.step(0, row, reset=False)
                    while is_prepared and followed.sliding.advance():
                        pass
                if is_spoilt:
                    followed.states[followed.windows.places[0], -gates_floats:] = 9
                answer = followed.step(0, rows[-1], reset=False)
                assert answer is not None
                whole = run_plan(plan, rows[-steps:].reshape(1, -1), name)
                assert (answer.tobytes() == whole.tobytes()) is not (is_prepared and is_spoilt)


def test_windows_that_are_closed_are_not_advanced() -> None:
    followed = Followed(kernels().load(Builder(4, 3, 0).head(1, "state")), Window(4, 3))
    others = StepWindows(Window(4, 3), 1)
    states = np.zeros(followed.sliding.place_floats, np.float32)
    others.follow_by(followed.sliding.windows(others.rows, others.stored, others.begin, states))
    for instrument in (0, 1, 2):
        followed.step(instrument, np.ones(3, np.float32), reset=False)
        others.store(0, np.ones(3, np.float32))
    followed.windows.follow_by(None)
    assert followed.sliding.advance()
    others.follow_by(None)
    assert not followed.sliding.advance()


def backwards(builder: Builder) -> None:
    builder.recurrent(Kind.LSTM, 3, reverse=True)


def pooled(builder: Builder) -> None:
    builder.recurrent(Kind.LSTM, 3)
    index = np.arange(12, dtype=np.uint32).reshape(4, 3).T.reshape(-1).copy()
    builder.add(Kind.INDEX, 3, (index,), (0, 12, 0))
    builder.value = builder.plan.add(Kind.REDUCE, (builder.value,), 3, (), (4, Reduce.MEAN))


def flattened(builder: Builder) -> None:
    builder.recurrent(Kind.LSTM, 3)
    tensors = (builder.floats(12, 12), builder.floats(12))
    builder.add(Kind.DENSE, 3, tensors, (12, 12, Function.IDENTITY, 0))


def older(builder: Builder) -> None:
    builder.recurrent(Kind.GRU, 3)
    builder.value = builder.plan.add(Kind.COPY, (builder.value,), 3, (), (6, 3, 0))


def by_position(builder: Builder) -> None:
    builder.recurrent(Kind.LSTM, 3)
    builder.add(Kind.CONSTANT, 3, (builder.floats(12),), (Binary.ADD, 0))


def normed_over_time(builder: Builder) -> None:
    builder.recurrent(Kind.LSTM, 3)
    builder.add(Kind.LAYERNORM, 3, (builder.floats(12), builder.floats(12)), (12, 0))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (backwards, "an LSTM runs backwards"),
        (pooled, "a rearrangement mixes the steps"),
        (flattened, "a layer takes 12 values, and a step has 3"),
        (older, "a copy takes more than the newest step"),
        (by_position, "an operation with a constant differs between the steps"),
        (normed_over_time, "a layer norm goes over 12 values, and a step has 3"),
        (lambda builder: builder.recurrent(Kind.LSTM, 3), "it answers for every step"),
    ],
)
def test_model_that_looks_at_its_steps_otherwise_is_refused(
    make: Callable[[Builder], None], why: str
) -> None:
    builder = Builder(4, 3, 0)
    make(builder)
    width = builder.plan.widths[builder.value]
    builder.plan.widths[1] = width
    builder.plan.append(Kind.MAP, builder.value, 1, (Function.IDENTITY,))
    with pytest.raises(ValueError, match=why):
        kernels().load(builder.plan.encode()).sliding(4)


@pytest.mark.parametrize("steps", [0, 1, 5, 1 << 40])
def test_window_of_another_length_is_refused(steps: int) -> None:
    with pytest.raises(ValueError):
        kernels().load(Builder(4, 3, 0).head(1, "state")).sliding(steps)


def test_arrays_that_do_not_fit_are_refused() -> None:
    sliding = kernels().load(Builder(4, 3, 0).head(1, "state")).sliding(4)
    windows = StepWindows(Window(4, 3), 2)
    states = np.zeros(2 * sliding.place_floats, np.float32)
    good = [windows.rows, windows.stored, windows.begin, states]
    made = sliding.windows(*good)
    for number, bad in (
        (0, windows.rows[:1]),
        (1, windows.stored.astype(np.float64)),
        (2, windows.begin[:1]),
        (3, states[1:]),
    ):
        with pytest.raises(ValueError):
            sliding.windows(*[*good[:number], bad, *good[number + 1 :]])
    for place in (-1, 2):
        with pytest.raises(IndexError, match="expected 0 to 1"):
            made.behind(place)
        with pytest.raises(IndexError, match="expected 0 to 1"):
            made.answer(place, np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="expected 1 elements"):
        made.answer(0, np.zeros(2, np.float32))


def test_lstm_of_the_zoo_slides_and_its_check_passes(tmp_path: Path) -> None:
    path = tmp_path / "lstm_a.onnx"
    path.write_bytes(zoo_file("lstm_a"))
    backend = open_backend(path, "native", 1, reading=HISTORY)
    assert isinstance(backend, NativeBackend)
    assert backend.why_whole_windows(1000) == ""
    # 50 windows of two layers with 100 values in state and cell, in whole vectors of 16, and 400 gates each.
    assert backend.state_bytes(1000) == 1000 * 2 * (50 * 2 * 112 + 400) * 4
    check_steps(backend)
    backend.close()


def test_check_finds_a_step_that_is_not_its_window(
    models: ModelMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = open_backend(models.lstm(), "native", 1, reading=HISTORY)
    follow = NativeBackend.follow

    def other_rows(self: NativeBackend, windows: StepWindows) -> Any:
        other = StepWindows(windows.window, windows.instruments_max)
        made = follow(self, other)
        other.stored += np.uint64(100)
        return made

    monkeypatch.setattr(NativeBackend, "follow", other_rows)
    with pytest.raises(BackendFailed, match="on native answers other bits than its whole window"):
        check_steps(backend)
    backend.close()


def test_model_that_runs_backwards_runs_whole_windows_and_says_why(
    models: ModelMaker, tmp_path: Path
) -> None:
    model = onnx.load(models.lstm(steps=5, features=4))
    (lstm,) = [node for node in model.graph.node if node.op_type == "LSTM"]
    lstm.attribute.append(helper.make_attribute("direction", "reverse"))
    path = tmp_path / "backwards.onnx"
    onnx.save(model, path)
    backend = open_backend(path, "native", 1, reading=HISTORY)
    assert isinstance(backend, NativeBackend)
    assert backend.why_whole_windows(1) == "an LSTM runs backwards"
    assert backend.state_bytes(1000) == 0
    assert backend.follow(StepWindows(Window(5, 4), 1)) is None
    assert not backend.advance()
    check_steps(backend)
    backend.close()


def test_states_past_the_limit_are_not_kept(models: ModelMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = open_backend(models.lstm(), "native", 1, reading=HISTORY)
    assert isinstance(backend, NativeBackend)
    assert backend.spec.window is not None
    monkeypatch.setattr(native, "STATES_BYTES_MAX", backend.state_bytes(2))
    assert backend.follow(StepWindows(backend.spec.window, 2)) is not None
    assert backend.follow(StepWindows(backend.spec.window, 3)) is None
    assert "3 instruments would take" in backend.why_whole_windows(3)
    assert backend.why_whole_windows(3).endswith("set history.instruments_max to at most 2")
    backend.close()
