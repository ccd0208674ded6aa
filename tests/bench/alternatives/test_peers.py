"""The load generator for what is no daemon: over HTTP, over gRPC, and inside its own process."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.bench.alternatives.conftest import FEATURES, OUTPUTS, grpc, http

from sigd.bench.alternatives.contenders import onnxruntime_library
from sigd.bench.errors import PeerFailed
from sigd.bench.load import requests, schedule
from sigd.bench.load.contract import LoadPlan, ViolationKind
from sigd.bench.load.native import NativeLoad
from sigd.bench.native.build import NativePrograms
from sigd.models.accuracy import run_rows
from sigd.models.registry import open_backend
from sigd.models.zoo import default_model_path
from sigd.wire.messages import Hello

HEAD = f"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: {4 * FEATURES}\r\n\r\n".encode().hex()
PEERS: dict[Any, list[str]] = {http: ["http", HEAD], grpc: ["grpc", "/bench.Model/Infer", ""]}
Converse = Callable[[socket.socket, str], None]


def plan_for(path: str, **options: Any) -> LoadPlan:
    rows = np.random.default_rng(3).standard_normal((50, FEATURES), np.float32)
    frames = requests.encode(rows, np.zeros(50, np.uint32))
    plan = LoadPlan(path, Hello(FEATURES, OUTPUTS), frames, OUTPUTS, requests=500, expected=rows[:, :OUTPUTS])
    return replace(plan, **options)


@pytest.mark.parametrize("converse", [http, grpc])
@pytest.mark.parametrize("fault", ["", "pieces", "turned"])
def test_every_answer_is_taken_and_right(
    programs: NativePrograms, start_server: Callable[..., Any], converse: Converse, fault: str
) -> None:
    plan = plan_for(start_server(converse, fault).path)
    plan = replace(plan, connections=5) if converse is http else replace(plan, in_flight=20)
    measurement = NativeLoad(programs, PEERS[converse]).run(plan, lambda: None)
    assert measurement.violation is None
    assert (measurement.sent, measurement.received) == (500, 500)


@pytest.mark.parametrize("converse", [http, grpc])
def test_an_open_loop_asks_when_a_request_is_due(
    programs: NativePrograms, start_server: Callable[..., Any], converse: Converse
) -> None:
    offsets = schedule.bursts(5, 100, 0.2)
    plan = plan_for(start_server(converse).path, requests=0, intended_ns=offsets, connections=5)
    measurement = NativeLoad(programs, PEERS[converse]).run(plan, lambda: None)
    assert measurement.received == 100
    assert measurement.intended_span_ns == offsets[-1]


@pytest.mark.parametrize(
    ("converse", "fault", "kind", "words"),
    [
        (http, "wrong", ViolationKind.WRONG, "the oracle says"),
        (grpc, "wrong", ViolationKind.WRONG, "the oracle says"),
        (http, "busy", ViolationKind.REJECTED, "HTTP/1.1 503"),
        (http, "close", ViolationKind.CLOSED_EARLY, "end of stream"),
        (grpc, "failed", ViolationKind.REJECTED, "ended without an answer"),
    ],
)
def test_a_server_that_fails_ends_the_run(
    programs: NativePrograms,
    start_server: Callable[..., Any],
    converse: Converse,
    fault: str,
    kind: ViolationKind,
    words: str,
) -> None:
    plan = plan_for(start_server(converse, fault).path)
    violation = NativeLoad(programs, PEERS[converse]).run(plan, lambda: None).violation
    assert violation is not None
    assert violation.kind is kind
    assert words in violation.text


def test_no_server_is_an_error_of_the_peer(programs: NativePrograms) -> None:
    with pytest.raises(PeerFailed, match="/nowhere: No such file"):
        NativeLoad(programs, PEERS[http]).run(plan_for("/nowhere"), lambda: None)


@pytest.fixture(scope="module")
def shipped() -> tuple[LoadPlan, list[str]]:
    """A plan for the shipped model with its answers, and how it is run in process."""
    path = default_model_path()
    backend = open_backend(path, "onnxruntime")
    spec = backend.spec
    rows = np.random.default_rng(5).standard_normal((40, spec.features), np.float32)
    plan = LoadPlan(
        *("/in-process", Hello(spec.features, spec.outputs), requests.encode(rows, np.zeros(40, np.uint32))),
        spec.outputs,
        requests=400,
        expected=run_rows(backend, rows),
    )
    backend.close()
    dims = "x".join(map(str, (1, *(spec.input_dims or (spec.features,)))))
    return plan, [
        *("onnxruntime", onnxruntime_library(), str(path), spec.input_name, spec.output_name, dims),
    ]


def test_onnxruntime_in_process_answers_as_the_backend_does(
    programs: NativePrograms, shipped: tuple[LoadPlan, list[str]]
) -> None:
    plan, peer = shipped
    measurement = NativeLoad(programs, peer).run(plan, lambda: None)
    assert measurement.violation is None
    assert measurement.received == 400
    assert measurement.counts.model.sum() == 400


def test_an_answer_that_is_not_the_expected_one_is_a_finding(
    programs: NativePrograms, shipped: tuple[LoadPlan, list[str]]
) -> None:
    plan, peer = shipped
    assert plan.expected is not None
    expected = plan.expected.copy()
    expected[7, 1] += 0.01
    violation = NativeLoad(programs, peer).run(replace(plan, expected=expected), lambda: None).violation
    assert violation is not None
    assert violation.kind is ViolationKind.WRONG
    assert violation.text.startswith("output 1 is ")


def test_onnxruntime_says_what_it_does_not_find(
    programs: NativePrograms, shipped: tuple[LoadPlan, list[str]]
) -> None:
    plan, peer = shipped
    with pytest.raises(PeerFailed, match="other"):
        NativeLoad(programs, [*peer[:3], "other", *peer[4:]]).run(plan, lambda: None)
