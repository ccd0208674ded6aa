"""Validating a file: what goes between the processes, and what is said of which file."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from sigd.daemon.reload import validation
from sigd.daemon.reload.validation import (
    MESSAGE_BYTES_MAX,
    NotHere,
    Passed,
    Refused,
    Task,
    Verdict,
    decode_verdict,
    encode,
    number_of,
    numbered,
    received,
    validate,
    wait_for_tasks,
)
from sigd.models.build.pipeline import build_engine
from sigd.models.build.request import Batches, BuildRequest
from sigd.models.onnxrt import OnnxRuntimeBackend
from sigd.models.spec import ModelSpec

if TYPE_CHECKING:
    from tests.conftest import ModelMaker

ODD_PATH = Path(os.fsdecode(b"/models/\xff.onnx"))
NUMBER = 7
SPEC = ModelSpec("m", ODD_PATH, bytes(range(32)), "in", "out", 4, 2, (2, 2), (), None, 17)


def task_for(path: Path, backend: str = "auto") -> Task:
    return Task(os.fsencode(path), backend, 8, "m", 1)


@pytest.mark.parametrize(
    "verdict", [Passed(SPEC, 1, 2, 3), NotHere(), Refused("schön"), Refused("x" * 4000)], ids=str
)
def test_a_verdict_arrives_as_it_was_sent(verdict: Verdict) -> None:
    assert decode_verdict(encode(verdict)) == verdict


def test_a_task_arrives_whatever_the_bytes_of_its_path() -> None:
    task = task_for(ODD_PATH)
    assert msgspec.msgpack.decode(encode(task), type=Task) == task


def test_what_passes_comes_with_its_bytes(models: ModelMaker, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(models.scaled(3.0, 4).read_bytes())
    verdict, descriptor = validate(task_for(path, "onnxruntime"))
    path.write_bytes(b"another one by now")
    assert isinstance(verdict, Passed)
    assert (verdict.spec.path, verdict.spec.name, verdict.run_ns > 0) == (path, "m", True)
    validated = received(verdict, descriptor)
    backend = OnnxRuntimeBackend(validated.spec, 8)
    with validated.model.mapped() as parts:
        backend.load(parts)
    for _ in backend.prepare():
        pass
    backend.inputs[0] = [1, 2, 3, 5]
    backend.submit(1)
    assert np.array_equal(backend.outputs[0], [3, 6, 9, 15])
    backend.close()


def test_what_is_no_model_is_refused_with_the_reason(models: ModelMaker, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"no model")
    for path, said in (
        (tmp_path / "none.onnx", "no such file"),
        (garbage, "not an ONNX model"),
        (models.mixing(4), "changes with the other rows"),
    ):
        verdict, descriptor = validate(task_for(path))
        assert isinstance(verdict, Refused)
        assert said in verdict.reason
        assert descriptor == -1


def test_an_engine_for_a_gpu_is_not_validated_here(models: ModelMaker, tmp_path: Path) -> None:
    engine = tmp_path / "m.engine"
    build_engine(
        BuildRequest(
            model=models.scaled(2.0), engine=engine, runtime="onnxruntime", batches=Batches(rows_max=8)
        )
    )
    verdict, descriptor = validate(task_for(engine))
    assert isinstance(verdict, Passed), "one for the CPU is"
    os.close(descriptor)
    file = Path(f"{engine}.json")
    manifest = json.loads(file.read_text())
    manifest["runtime"] = "tensorrt"
    manifest["tools"]["tensorrt"] = "11.0.0"
    file.write_text(json.dumps(manifest))
    assert validate(task_for(engine)) == (NotHere(), -1)
    assert validate(task_for(models.scaled(2.0), "oracle")) == (NotHere(), -1)


def test_without_memory_it_is_refused(models: ModelMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise MemoryError

    monkeypatch.setattr(validation, "write_model", full)
    path = models.scaled(2.0)
    assert validate(task_for(path)) == (Refused(f"{path}: out of memory"), -1)


def test_a_reason_of_any_length_fits_a_message() -> None:
    reason = validation.brief("ä" * 1_000_000)
    assert len(encode(Refused(reason))) < MESSAGE_BYTES_MAX


@pytest.mark.parametrize("daemon_ends", [True, False], ids=["the daemon ends", "time runs out"])
def test_a_file_that_takes_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch, daemon_ends: bool) -> None:
    monkeypatch.setattr(validation, "TIMEOUT_S", 60 if daemon_ends else 0.02)
    (daemon, channel), (worker, tasks) = (
        socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)
    )
    with channel, worker, tasks, daemon:
        if daemon_ends:
            daemon.close()
        said = "the daemon has ended" if daemon_ends else "validating it took longer than 0.02 s"
        assert validation.watch_worker(worker, channel) == said
        tasks.send(b"\0")
        assert validation.watch_worker(worker, channel) == "", "it is done all the same"


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (signal.SIGKILL, "was ended by SIGKILL: out of memory?"),
        (signal.SIGSEGV, "was ended by SIGSEGV"),
        (3 << 8, "ended with status 3"),
    ],
)
def test_how_a_process_ended(status: int, said: str) -> None:
    assert validation.how_worker_ended(status) == said


def validator(
    monkeypatch: pytest.MonkeyPatch, message: bytes, *, waits: bool = True
) -> tuple[int, bytes | None]:
    """The exit status of a process that validates that, and its answer; None where the daemon ends without
    waiting."""
    monkeypatch.setattr(validation, "leave_loop_core", lambda *_, **__: None)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        try:
            ours.close()
            wait_for_tasks(theirs, {0})
            os._exit(0)
        finally:
            os._exit(1)
    theirs.close()
    with ours:
        ours.send(numbered(NUMBER, message))
        if not waits:
            answer = None
        else:
            number, answer = number_of(ours.recv(MESSAGE_BYTES_MAX))
            assert number == NUMBER
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), answer


def test_without_memory_for_practice_it_validates_all_the_same(
    models: ModelMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def _too_much(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(validation, "open_backend", _too_much)
    status, answer = validator(monkeypatch, encode(task_for(models.scaled(3.0, 4))))
    assert status == 0
    assert answer is not None
    verdict = decode_verdict(answer)
    assert isinstance(verdict, Refused)
    assert "out of memory" in verdict.reason


def test_a_daemon_that_has_ended_is_not_answered(models: ModelMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "prewarm", lambda: None)
    monkeypatch.setattr(validation, "validate", lambda _: time.sleep(60))
    assert validator(monkeypatch, encode(task_for(models.scaled(3.0, 4))), waits=False) == (0, None)
