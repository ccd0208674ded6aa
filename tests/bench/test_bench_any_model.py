"""Measurements with a model that reads integers and bools and answers several outputs: it is sent random rows
that it takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import TensorProto, helper
from tests.models.onnx.test_flatten import FLOAT, INT64, W, value, write

from sigd.bench.daemon_process import OwnDaemon, ServeOptions
from sigd.bench.floor.bare_backend import BareBackend
from sigd.bench.load.native import NativeLoad
from sigd.bench.load.plan import plan_for, served_columns
from sigd.bench.profile.run import measure_model
from sigd.wire import fields
from sigd.wire.layout import frame_dtype
from sigd.wire.messages import Hello
from sigd.wire.status import Transport

if TYPE_CHECKING:
    from sigd.bench.load.contract import LoadPlan
    from sigd.bench.native.build import NativePrograms


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The number of one of four instruments, a bool, a float64 and three float16 in; their sum and a label
    out."""
    types = {"open": TensorProto.BOOL, "price": TensorProto.DOUBLE, "half": TensorProto.FLOAT16}
    nodes = [
        *(helper.make_node("Cast", [name], [f"{name}_float"], to=FLOAT) for name in types),
        helper.make_node("Gather", ["w", "instrument"], ["known"]),
        helper.make_node("Sum", ["known", *(f"{name}_float" for name in types)], ["sum"]),
        helper.make_node("ArgMax", ["sum"], ["label"], axis=1, keepdims=0),
    ]
    widths = {"open": 1, "price": 1, "half": 3}
    inputs = [value("instrument", INT64, ["N"])]
    inputs += [value(name, types[name], ["N", width]) for name, width in widths.items()]
    outputs = [value("sum", FLOAT, ["N", 3]), value("label", INT64, ["N"])]
    return write(tmp_path, nodes, inputs, outputs, [W])


def features_of(plan: LoadPlan) -> np.ndarray:
    """float32, (rows, 6)."""
    layout = frame_dtype(fields.SIGNAL_REQUEST, features=6)
    return plan.frames.reshape(-1).view(layout)["features"]


@pytest.mark.parametrize("transport", list(Transport))
def test_all_random_requests_are_answered(
    programs: NativePrograms, model: Path, transport: Transport
) -> None:
    with OwnDaemon(ServeOptions(str(model), idle="block")) as daemon:
        plan, welcome = plan_for(daemon.socket_path, Hello(transport=transport))
        columns = served_columns(daemon.socket_path, welcome.model_name)
        assert [one.dtype for one in columns] == ["int64", "bool", "float64", "float16"]
        assert set(features_of(plan)[:, 0]) == {0, 1, 2, 3}, "every instrument"
        found = NativeLoad(programs).run(replace(plan, requests=len(plan.frames)), lambda: None)
    assert found.violation is None
    assert found.statuses[0] == found.requests == len(plan.frames)


def test_a_daemon_without_an_admin_socket_is_sent_floats(tmp_path: Path) -> None:
    assert served_columns(str(tmp_path / "far.sock"), "m") == ()


def test_the_bare_call_and_the_stages_are_timed(model: Path) -> None:
    with BareBackend(str(model), "onnxruntime", 4, None) as bare:
        assert bare.measure(4, 0.01).calls > 0
    times = measure_model(model, "onnxruntime", 4, 0.01, None)
    assert times.features == 6
