"""The daemon's side of validating: a process that hangs or ends is replaced, and no answer is taken for
another's."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvloop
from tests.descriptors import open_descriptors

from sigd.daemon.config.choices import LogFormat
from sigd.daemon.reload import validator as validator_module
from sigd.daemon.reload.validation import (
    MESSAGE_BYTES_MAX,
    NotHere,
    Passed,
    Refused,
    Task,
    encode,
    number_of,
    numbered,
)
from sigd.daemon.reload.validator import Validator
from sigd.daemon.runtime.child_process import Starter
from sigd.models.errors import ModelRefused
from sigd.models.spec import ModelSpec

if TYPE_CHECKING:
    from tests.conftest import ModelMaker

CORES = os.sched_getaffinity(0)


def task_for(path: Path) -> Task:
    return Task(os.fsencode(path), "auto", 8, "m", 1)


@pytest.fixture
def validator() -> Iterator[Validator]:
    validator = Validator(Starter({max(CORES)}), LogFormat.TEXT)
    gc.unfreeze()
    yield validator
    validator.close()


def spec_of(path: Path) -> ModelSpec:
    return ModelSpec("m", path, bytes(32), "in", "out", 4, 4, (2, 2), (), None, 17)


def run(validator: Validator, work: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        validator.watch(asyncio.get_running_loop())
        await asyncio.wait_for(work(), 60)

    uvloop.run(main())


async def until_it_runs(validator: Validator) -> None:
    while not validator.running:
        await asyncio.sleep(0.01)


def test_one_that_hangs_is_replaced_by_another(
    validator: Validator,
    models: ModelMaker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = models.scaled(2.0)

    async def work() -> None:
        # The process is the validator's own business; a test has to hurt it.
        os.kill(validator._pid, signal.SIGSTOP)
        with monkeypatch.context() as patched:
            patched.setattr(validator_module, "ANSWER_TIMEOUT_S", 0.1)
            with pytest.raises(ModelRefused, match=r"not answered for 0\.1 s"):
                await validator.validate(task_for(path))
        while validator.running:
            await asyncio.sleep(0.001)
        with pytest.raises(ModelRefused, match="was ended by SIGKILL and is started again: try it in a few"):
            await validator.validate(task_for(path))
        await until_it_runs(validator)
        assert os.sched_getaffinity(validator._pid) == {max(CORES)}
        validated = await validator.validate(task_for(path))
        assert validated is not None
        assert validated.spec.path == path

    run(validator, work)
    assert validator.restarts == 1
    (said,) = (record.getMessage() for record in caplog.records if record.levelno == logging.ERROR)
    assert said == (
        "the process that validates models was ended by SIGKILL and is started again in 1 s; until then"
        " reloads are refused"
    )


def test_who_waits_for_one_that_ends_is_told_at_once(validator: Validator, models: ModelMaker) -> None:
    async def work() -> None:
        # As above: the process is hurt from outside.
        os.kill(validator._pid, signal.SIGSTOP)
        waiting = asyncio.ensure_future(validator.validate(task_for(models.scaled(2.0))))
        await asyncio.sleep(0.01)
        os.kill(validator._pid, signal.SIGKILL)
        with pytest.raises(ModelRefused, match="was ended by SIGKILL and is started again"):
            await waiting

    run(validator, work)


def test_where_no_process_can_be_started_it_is_tried_again(
    validator: Validator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        with monkeypatch.context() as patched:
            # As above; and its own starter alone shall fail.
            patched.setattr(validator._starter, "start", _no_process)
            os.kill(validator._pid, signal.SIGKILL)
            while "cannot be started: Resource temporarily unavailable" not in caplog.text:
                await asyncio.sleep(0.01)
        await until_it_runs(validator)

    run(validator, work)
    assert validator.restarts == 2


def _no_process(*_: object) -> None:
    raise BlockingIOError("Resource temporarily unavailable")


@pytest.fixture
def process(validator: Validator) -> Iterator[socket.socket]:
    """The other end of the channel, where the test answers in place of the process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        # The process itself would end with its channel, and a process that answers wrongly cannot be had: so
        # the test takes the channel's place.
        real, validator._channel = validator._channel, ours
        yield theirs
        validator._channel = real


async def asked(process: socket.socket) -> int:
    """The number of the next task."""
    await asyncio.sleep(0.01)
    number, _ = number_of(process.recv(MESSAGE_BYTES_MAX))
    return number


def test_answer_to_a_client_that_gave_up_is_not_the_next_ones(
    validator: Validator, process: socket.socket, tmp_path: Path
) -> None:
    async def work() -> None:
        given_up = asyncio.ensure_future(validator.validate(task_for(tmp_path)))
        first = await asked(process)
        given_up.cancel()
        waiting = asyncio.ensure_future(validator.validate(task_for(tmp_path)))
        second = await asked(process)
        open_files = len(open_descriptors())
        socket.send_fds(process, [numbered(first, encode(Refused("of another file")))], [process.fileno()])
        process.send(numbered(second, encode(NotHere())))
        assert await waiting is None
        assert len(open_descriptors()) == open_files, "what came along is closed"

    run(validator, work)


def test_a_model_that_could_not_be_received_is_refused_with_the_reason(
    validator: Validator, process: socket.socket, models: ModelMaker
) -> None:
    """The kernel drops a descriptor for which the receiver has no room, and says nothing."""
    path = models.scaled(2.0)

    async def work() -> None:
        waiting = asyncio.ensure_future(validator.validate(task_for(path)))
        number = await asked(process)
        process.send(numbered(number, encode(Passed(spec_of(path), 1, 2, 3))))
        with pytest.raises(
            ModelRefused, match=r"no open file was left to receive it with: raise LimitNOFILE"
        ):
            await waiting

    run(validator, work)
