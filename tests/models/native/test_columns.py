"""Columns: a step of convolutions is answered with the bits of its whole window, whatever was kept before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import event, given, reject, settings
from hypothesis import strategies as st
from onnx import helper
from tests.models.native.conftest import model_of, plan_of
from tests.models.native.test_sliding import EVENTS, HISTORY, Followed, stepped_through

from sigd.models.history import Window
from sigd.models.history_check import check_steps
from sigd.models.manifest import PrecisionName
from sigd.models.native.backend import NativeBackend, kernels
from sigd.models.reading import HistoryOptions, ReadOptions
from sigd.models.registry import open_backend

if TYPE_CHECKING:
    from tests.conftest import ModelMaker

Array = npt.NDArray[Any]
PADS = ("causal", "valid", "same")
NOTHING_SAVED = "a step would repeat"


@dataclass
class Graph:
    """A model of convolutions that grows layer by layer: [channels, steps] under `value`."""

    steps: int
    features: int
    time_axis: int
    seed: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, Array] = field(default_factory=dict)
    value: str = "features"

    def __post_init__(self) -> None:
        self.draw = np.random.default_rng(self.seed)
        self.channels, self.length = self.features, self.steps
        if self.time_axis == 1:
            self.add("Transpose", perm=[0, 2, 1])

    def floats(self, *shape: int) -> str:
        return self.constant((self.draw.standard_normal(shape) / 2).astype(np.float32))

    def constant(self, array: Array) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = array
        return name

    def add(self, operation: str, *more: str, **attributes: Any) -> str:
        before, self.value = self.value, f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operation, [before, *more], [self.value], **attributes))
        return before

    def conv(
        self,
        channels: int,
        kernel: int,
        dilation: int = 1,
        pad: str = "causal",
        stride: int = 1,
        group: int = 1,
    ) -> None:
        reach = dilation * (kernel - 1)
        pads = {"causal": [reach, 0], "same": [reach // 2, reach - reach // 2], "valid": [0, 0]}[pad]
        self.length = (self.length + sum(pads) - reach - 1) // stride + 1
        if self.length < 1:
            reject()
        weights = self.floats(channels, self.channels // group, kernel), self.floats(channels)
        self.add("Conv", *weights, dilations=[dilation], pads=pads, strides=[stride], group=group)
        self.channels = channels

    def residual(self, kernel: int, dilation: int, pad: str) -> None:
        """A block whose input is added to what it gives; of unpadded blocks its newest part."""
        before = self.value
        self.conv(self.channels, kernel, dilation, pad)
        self.add("Relu")
        made, self.value = self.value, before
        if pad == "valid":
            ends = [self.constant(np.array([n], np.int64)) for n in (-self.length, 1 << 62, 2)]
            self.add("Slice", *ends)
        self.add("Add", made)

    def layer_norm(self) -> None:
        self.add("Transpose", perm=[0, 2, 1])
        self.add("LayerNormalization", self.floats(self.channels), self.floats(self.channels))
        self.add("Transpose", perm=[0, 2, 1])

    def batch_norm(self) -> None:
        n = self.channels
        variance = self.constant(self.draw.uniform(0.5, 2, n).astype(np.float32))
        self.add("BatchNormalization", self.floats(n), self.floats(n), self.floats(n), variance)

    def grouped(self) -> None:
        self.conv(self.channels, 3, group=self.channels)

    def head(self, how: str) -> onnx.ModelProto:
        width = self.channels
        if how == "newest":
            self.add("Gather", self.constant(np.array(self.length - 1)), axis=2)
        elif how == "flat":
            self.add("Flatten")
            width *= self.length
        else:
            self.add("GlobalAveragePool" if how == "mean" else "GlobalMaxPool")
            self.add("Flatten")
        self.add("Gemm", self.floats(width, 2), self.floats(2))
        self.nodes[-1].output[0] = "answer"
        dims = (self.steps, self.features) if self.time_axis == 1 else (self.features, self.steps)
        return model_of(self.nodes, dims, [2], self.weights)


def why_refused(plan: bytes, window: Window) -> str:
    try:
        kernels().load(plan).sliding(window.steps, window.time_axis)
    except ValueError as error:
        return str(error)
    return ""


LAYER = st.one_of(
    st.tuples(
        st.just("conv"), st.integers(1, 20), st.integers(1, 3), st.integers(1, 2), st.sampled_from(PADS)
    ),
    st.tuples(st.just("residual"), st.integers(2, 3), st.integers(1, 2), st.sampled_from(PADS)),
    st.tuples(
        st.sampled_from(["Relu", "Tanh", "Sigmoid", "Softplus", "layer_norm", "batch_norm", "grouped"])
    ),
    st.tuples(st.just("strided"), st.integers(1, 12), st.integers(2, 3)),
)
MORE_EVENTS = EVENTS.map(
    lambda events: [
        (instrument, "store" if what == "step" and number % 7 == 3 else what, advances)
        for number, (instrument, what, advances) in enumerate(events)
    ]
)


def grown(graph: Graph, layers: list[tuple[Any, ...]], head: str) -> onnx.ModelProto:
    for name, *sizes in layers:
        if name == "strided":
            graph.conv(sizes[0], sizes[1], pad="valid", stride=2)
        elif name in ("conv", "residual", "layer_norm", "batch_norm", "grouped"):
            getattr(graph, name)(*sizes)
        else:
            graph.add(name)
    return graph.head(head)


@given(
    steps=st.integers(6, 24),
    features=st.integers(1, 12),
    time_axis=st.sampled_from([1, 2]),
    layers=st.lists(LAYER, min_size=1, max_size=4),
    head=st.sampled_from(["newest", "newest", "flat", "mean", "largest"]),
    precision=st.sampled_from(["fp32", "fp32", "fp16", "bf16", "int8"]),
    events=MORE_EVENTS,
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=80, deadline=None)
def test_step_has_the_bits_of_its_whole_window(
    steps: int,
    features: int,
    time_axis: int,
    layers: list[tuple[Any, ...]],
    head: str,
    precision: PrecisionName,
    events: list[tuple[int, str, int]],
    seed: int,
) -> None:
    window = Window(steps, features, time_axis)
    if precision != "fp32":  # which takes a layer of more than 8 outputs
        layers = [("conv", 16, 2, 1, "causal"), *layers]
    plan = plan_of(grown(Graph(steps, features, time_axis, seed), layers, head), precision)
    if why := why_refused(plan, window):
        assert NOTHING_SAVED in why
        event("refused")
        return
    event("answers steps")
    for name in kernels().instruction_sets():
        stepped_through(plan, window, events, seed, name)


def test_steps_of_a_deep_net_are_answered_from_their_columns() -> None:
    """Kernels that reach far back, over windows that are behind, begun anew and stored without an answer."""
    graph = Graph(40, 5, 1, 7)
    for dilation in (1, 2, 4):
        graph.conv(24, 3, dilation)
        graph.add("Relu")
        graph.residual(3, dilation, "causal")
        graph.layer_norm()
    plan = plan_of(graph.head("newest"))
    draw = np.random.default_rng(0)
    names = ["step"] * 40 + ["reset", "give up", "follow anew", "store"]
    events = [
        (int(draw.integers(0, 2)), names[draw.integers(0, len(names))], int(draw.integers(0, 3)))
        for _ in range(700)
    ]
    for name in kernels().instruction_sets():
        stepped_through(plan, Window(40, 5), events, 0, name)


@pytest.mark.parametrize("head", ["flat", "mean", "largest"])
@pytest.mark.parametrize("pad", ["valid", "same"])
def test_head_that_reads_all_columns_reads_what_was_kept(head: str, pad: str) -> None:
    graph = Graph(30, 4, 2, 3)
    graph.conv(16, 3, pad=pad)
    graph.add("Tanh")
    graph.conv(16, 3, pad=pad)
    plan = plan_of(graph.head(head))
    events = [(number % 2, "step", number % 3) for number in range(150)]
    for name in kernels().instruction_sets():
        stepped_through(plan, Window(30, 4, 2), events, 0, name)


def columns_of(*layers: Callable[[Graph], object], steps: int = 32, head: str = "newest") -> bytes:
    graph = Graph(steps, 4, 1, 0)
    for layer in layers:
        layer(graph)
    return plan_of(graph.head(head))


def test_each_layer_keeps_as_many_columns_as_it_looks_back() -> None:
    plan = columns_of(lambda g: g.conv(16, 3, 2), lambda g: g.conv(32, 2, 5))
    # The second layer reads the first one's 16 channels of 5 steps ago; rows are the windows' own.
    assert kernels().load(plan).sliding(32).place_floats == 6 * 16


def test_step_that_would_repeat_most_of_its_window_is_refused() -> None:
    for plan, why in (
        (columns_of(lambda g: None, head="flat"), "most of it is a layer of 128 values"),
        (columns_of(*[lambda g: g.conv(8, 3)] * 16, head="mean"), "a layer of .*, some of which are padding"),
    ):
        with pytest.raises(
            ValueError, match=rf"would repeat \d+% of its window, expected at most 50%.*{why}"
        ):
            kernels().load(plan).sliding(32)


def test_model_of_its_newest_step_keeps_nothing() -> None:
    plan = columns_of(lambda g: g.conv(8, 1), lambda g: g.add("Relu"))
    assert kernels().load(plan).sliding(32).place_floats == 0
    stepped_through(plan, Window(32, 4), [(0, "step", 0)] * 40, 0, kernels().instruction_sets()[0])


@pytest.mark.parametrize(("steps", "axis"), [(0, 1), (1, 1), (31, 1), (1 << 40, 1), (32, 0), (32, 3)])
def test_window_of_another_shape_is_refused(steps: int, axis: int) -> None:
    engine = kernels().load(columns_of(lambda g: g.conv(8, 2)))
    with pytest.raises(ValueError, match="window"):
        engine.sliding(steps, axis)


def test_column_that_was_answered_is_not_computed_again() -> None:
    followed = Followed(kernels().load(columns_of(lambda g: g.conv(8, 2))), Window(32, 4))
    row = np.ones(4, np.float32)
    for _ in range(40):
        followed.store(0, row, reset=False)
    assert followed.sliding.advance()
    assert sum(followed.sliding.advance() for _ in range(100)) == 31
    for _ in range(3):
        followed.step(0, row, reset=False)
    assert not followed.sliding.advance()


def test_windows_far_behind_catch_up_though_nothing_is_idle() -> None:
    followed = Followed(kernels().load(columns_of(lambda g: g.conv(8, 2, pad="valid"))), Window(32, 4))
    row = np.ones(4, np.float32)
    for _ in range(32):
        followed.store(0, row, reset=False)
    for _ in range(64):
        followed.step(0, row, reset=False)
    assert not followed.sliding.advance()


def test_tcn_of_a_file_slides_and_its_check_passes(models: ModelMaker) -> None:
    backend = open_backend(models.tcn(30, 4, 16, (1, 2, 4)), "native", 1, reading=HISTORY)
    assert isinstance(backend, NativeBackend)
    assert backend.why_whole_windows(1000) == ""
    # 3 columns of the first block's 16 channels, 5 of the second's.
    assert backend.state_bytes(1000) == 1000 * (3 + 5) * 16 * 4
    check_steps(backend)
    backend.close()


def test_conv_over_channels_by_steps_slides(models: ModelMaker) -> None:
    reading = ReadOptions(history=HistoryOptions(time_axis=2))
    backend = open_backend(models.conv(6, 40), "native", 1, reading=reading)
    assert isinstance(backend, NativeBackend)
    assert backend.why_whole_windows(1) == ""
    check_steps(backend)
    backend.close()
