"""The whole daemon on the GPU path, under load, with every fault: what its clients see, and how it ends.

`sigd serve` runs as it would on a GPU; the driver under it is the simulated one, which this process watches
and disturbs through the control block that the two share.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sigd.wire.client import Client, connect
from sigd.wire.errors import ReceiveTimeout, SessionClosed
from sigd.wire.status import GoodbyeCode, Status

if TYPE_CHECKING:
    from tests.simcuda.conftest import EngineMaker

FEATURES, ROWS = 4, 8
CLIENTS, IN_FLIGHT, WARM_ANSWERS = 2, 16, 200
PATIENCE_S = 60.0
"""How long anything may take before a test gives up; none waits for it."""
DEVICE_NS = {"SIMCUDA_LAUNCH_NS": "5000", "SIMCUDA_COPY_NS": "2000", "SIMCUDA_KERNEL_NS": "20000"}
"""Device time of a batch: long enough that there always is one under way."""


class Daemon:
    """`sigd serve` as a child process, and the control block of the driver that it runs on."""

    def __init__(self, folder: Path, engine: Path, *arguments: str, **variables: str) -> None:
        self.socket = folder / "sigd.sock"
        self.errors = folder / "stderr"
        control = folder / "control"
        command = [sys.executable, "-P", "-m", "sigd.daemon", "serve", "--socket", str(self.socket)]
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [*command, "--model", str(engine), "--batch-rows-max", str(ROWS), *arguments],
                env={**os.environ, **DEVICE_NS, **variables, "SIMCUDA_CONTROL": str(control)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        self._control_file = control
        self._control: Any = None

    @property
    def control(self) -> Any:
        """Once the driver is loaded, which a daemon on the CPU does with its first engine."""
        import simcuda_control  # type: ignore[import-not-found]

        if self._control is None:
            self._control = simcuda_control.shared(self._control_file)
        return self._control

    def wait_until_ready(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        assert line.startswith("sigd ready: "), self.said()
        assert "backend=tensorrt" in line

    def until_stuck(self) -> None:
        """Wait until a batch is under way that does not come back."""
        launched = -1
        while launched != (launched := self.control.calls_of("cuGraphLaunch")):
            time.sleep(0.3)

    def said(self) -> str:
        return self.errors.read_text()

    def ended(self) -> int:
        return self.process.wait(PATIENCE_S)

    def end(self) -> None:
        """Whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


Start = Callable[..., Daemon]


@pytest.fixture
def start(tmp_path: Path, make_engine: EngineMaker) -> Iterator[Start]:
    """Starts a daemon on the model that doubles its features: (*flags, ready=True, **environment) ->
    Daemon."""
    daemons: list[Daemon] = []

    def start(*arguments: str, ready: bool = True, **variables: str) -> Daemon:
        daemon = Daemon(tmp_path, make_engine(), *arguments, **variables)
        daemons.append(daemon)
        if ready:
            daemon.wait_until_ready()
        return daemon

    yield start
    for daemon in daemons:
        daemon.end()


class Load:
    """Clients that keep requests in flight until the daemon ends their sessions, and check every answer.

    Attributes:
        statuses: how many answers came with each status, over all clients.
        unanswered: requests without an answer at the end of each session.
        goodbyes: the codes that the daemon said at the end.
        wrong: answers that say OK and are not.
    """

    def __init__(self, socket: Path) -> None:
        self.statuses: Counter[Status] = Counter()
        self.unanswered: list[int] = []
        self.goodbyes: list[int | None] = []
        self.wrong = 0
        self._stop = threading.Event()
        self._clients = [connect(socket, timeout_s=PATIENCE_S) for _ in range(CLIENTS)]
        self._threads = [threading.Thread(target=self._run, args=(client,)) for client in self._clients]
        for thread in self._threads:
            thread.start()

    def until_answered(self, answers: int, status: Status = Status.OK) -> None:
        """Wait until so many more answers of that status have come."""
        wanted = self.statuses[status] + answers
        deadline = time.monotonic() + PATIENCE_S
        while self.statuses[status] < wanted:
            assert time.monotonic() < deadline, self.statuses
            time.sleep(0.002)

    def end(self) -> None:
        """Send no more, take what is still to come, and close."""
        self._stop.set()
        self.until_ended()

    def until_ended(self) -> None:
        """Wait until every session has ended."""
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

    def _run(self, client: Client) -> None:
        draw = np.random.default_rng(0)
        sent: list[float] = []
        try:
            while not self._stop.is_set():
                values = draw.integers(1, 1000, IN_FLIGHT - client.unanswered).astype(np.float32)
                if len(values):
                    client.send_many(np.repeat(values[:, np.newaxis], FEATURES, axis=1))
                    sent += values.tolist()
                self._take(client.receive_many(timeout_s=PATIENCE_S), sent)
            while client.unanswered:
                self._take(client.receive_many(timeout_s=PATIENCE_S), sent)
        except SessionClosed:
            pass
        self.unanswered.append(client.unanswered)
        self.goodbyes.append(client.goodbye_code)
        client.close()

    def _take(self, answers: Any, sent: list[float]) -> None:
        asked, sent[:] = np.array(sent[: len(answers)], np.float32), sent[len(answers) :]
        good = answers["status"] == Status.OK
        self.wrong += int((answers["outputs"][good] != 2 * asked[good, np.newaxis]).any(axis=1).sum())
        assert np.isnan(answers["outputs"][~good]).all()
        self.statuses.update(Status(status) for status in answers["status"].tolist())


def assert_died_well(daemon: Daemon, load: Load, *words: str) -> None:
    """In-flight requests were answered MODEL_ERROR, the daemon took no more, said why, and ended with an
    error."""
    load.until_ended()
    assert daemon.ended() == 1
    assert load.wrong == 0
    assert load.statuses[Status.MODEL_ERROR] > 0
    assert set(load.statuses) <= {Status.OK, Status.MODEL_ERROR, Status.DRAINING, Status.BUSY}
    assert load.goodbyes == [GoodbyeCode.DRAINING] * CLIENTS
    assert not daemon.socket.exists()
    said = daemon.said()
    for word in ("stopped: the model's device failed", "Simulated GPU", *words):
        assert word in said, said
    assert "Traceback" not in said, said
    assert "PyCUDA" not in said, said


# -- the device dies -------------------------------------------------------------------------------------


@pytest.mark.parametrize("idle", ["spin", "backoff", "block"])
def test_without_a_fault_every_answer_is_right_and_the_end_is_clean(start: Start, idle: str) -> None:
    daemon = start("--idle", idle)
    load = Load(daemon.socket)
    load.until_answered(WARM_ANSWERS)
    load.end()
    daemon.process.terminate()
    assert daemon.ended() == 0, daemon.said()
    assert load.wrong == 0
    assert set(load.statuses) == {Status.OK}
    control = daemon.control
    assert (control.device_bytes, control.pinned_bytes, control.streams, control.events, control.graphs) == (
        0,
    ) * 5
    assert "PyCUDA" not in daemon.said()


def test_nothing_is_allocated_under_load(start: Start) -> None:
    daemon = start("--idle", "spin")
    load = Load(daemon.socket)
    load.until_answered(WARM_ANSWERS)
    before = daemon.control.all_calls()
    load.until_answered(WARM_ANSWERS)
    after = daemon.control.all_calls()
    load.end()
    made = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert set(made) == {"cuGraphLaunch", "cuEventRecord", "cuEventQuery"}
    assert abs(made["cuGraphLaunch"] - made["cuEventRecord"]) <= 1


@pytest.mark.parametrize("code", [700, 719])
def test_a_kernel_that_dies(start: Start, code: int) -> None:
    daemon = start()
    load = Load(daemon.socket)
    load.until_answered(WARM_ANSWERS)
    daemon.control.kernel_fault = code
    assert_died_well(daemon, load, f"({code})")


@pytest.mark.parametrize("call", ["cuGraphLaunch", "cuEventRecord", "cuEventQuery"])
def test_a_context_that_is_found_dead(start: Start, call: str) -> None:
    daemon = start()
    load = Load(daemon.socket)
    load.until_answered(WARM_ANSWERS)
    daemon.control.fail(call, 999)
    assert_died_well(daemon, load, "(999)")


def test_a_device_that_hangs(start: Start) -> None:
    daemon = start()
    load = Load(daemon.socket)
    load.until_answered(WARM_ANSWERS)
    daemon.control.hang = 1
    assert_died_well(daemon, load, "did not finish within 1000 ms")


def test_a_device_that_hangs_while_the_daemon_drains(start: Start) -> None:
    daemon = start()
    load = Load(daemon.socket)
    load.until_answered(WARM_ANSWERS)
    daemon.control.hang = 1
    daemon.until_stuck()
    daemon.process.terminate()
    assert_died_well(daemon, load, "did not finish within 1000 ms")


# -- the device recovers
# ---------------------------------------------------------------------------------------------


def test_a_stall_delays_answers_and_spoils_none(start: Start) -> None:
    daemon = start()
    load = Load(daemon.socket)
    load.until_answered(WARM_ANSWERS)
    daemon.control.stall_ns = 200_000_000
    load.until_answered(WARM_ANSWERS)
    load.end()
    assert load.wrong == 0
    assert set(load.statuses) == {Status.OK}
    daemon.process.terminate()
    assert daemon.ended() == 0


def test_a_launch_without_memory_costs_its_batch_only(start: Start) -> None:
    daemon = start()
    load = Load(daemon.socket)
    load.until_answered(WARM_ANSWERS)
    launches = daemon.control.calls_of("cuGraphLaunch")
    daemon.control.fail("cuGraphLaunch", 2)
    # A batch that fails is run again in halves, so that at most its own rows are answered MODEL_ERROR.
    load.until_answered(WARM_ANSWERS)
    load.end()
    assert daemon.control.calls_of("cuGraphLaunch") > launches + 1, "it failed, and was run again"
    assert load.wrong == 0
    assert load.statuses[Status.MODEL_ERROR] <= ROWS
    daemon.process.terminate()
    assert daemon.ended() == 0


def test_a_neighbour_that_takes_all_memory_is_not_noticed(start: Start) -> None:
    daemon = start()
    load = Load(daemon.socket)
    load.until_answered(WARM_ANSWERS)
    daemon.control.cotenant_bytes = daemon.control.total_bytes
    load.until_answered(WARM_ANSWERS)
    load.end()
    assert set(load.statuses) == {Status.OK}
    assert load.wrong == 0
    daemon.process.terminate()
    assert daemon.ended() == 0


# -- the start -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "code", "words"),
    [
        ({"SIMCUDA_COTENANT_MIB": "24576"}, 3, "MiB are free"),
        ({"SIMCUDA_DEVICES": "0"}, 3, "no device"),
        ({"SIMCUDA_COMPUTE_CAPABILITY": "89"}, 2, "build it again: sigd build-engine"),
        ({"SIMCUDA_KERNEL_FAULT": "700"}, 1, "CUDA_ERROR_ILLEGAL_ADDRESS (700)"),
        ({"SIMCUDA_HANG": "1"}, 1, "did not finish within 1000 ms"),
    ],
    ids=["a card that is full", "no card", "another card", "a card that dies", "a card that hangs"],
)
def test_a_start_that_fails_says_why_and_opens_no_socket(
    start: Start, variables: dict[str, str], code: int, words: str
) -> None:
    daemon = start("--device-timeout-ms", "100", ready=False, **variables)
    assert daemon.ended() == code, daemon.said()
    assert words in daemon.said()
    assert "Traceback" not in daemon.said()
    assert not daemon.socket.exists()


def test_no_answer_once_the_device_is_dead(start: Start) -> None:
    """A client that comes after the fault finds no socket, and is not left waiting."""
    daemon = start()
    client = connect(daemon.socket, timeout_s=PATIENCE_S)
    daemon.control.kernel_fault = 700
    assert client.request([1.0] * FEATURES).status is Status.MODEL_ERROR
    with pytest.raises((SessionClosed, ReceiveTimeout)):
        client.receive()
    assert daemon.ended() == 1
    client.close()
    with pytest.raises(Exception, match=r"sigd\.sock"):
        connect(daemon.socket, timeout_s=1.0)


def test_an_idle_gpu_is_kept_warm_where_that_is_asked_for(start: Start) -> None:
    daemon = start("--keep-warm-us", "500", "--idle", "block")
    launched = daemon.control.calls_of("cuGraphLaunch")
    deadline = time.monotonic() + PATIENCE_S
    while daemon.control.calls_of("cuGraphLaunch") < launched + 10:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    load = Load(daemon.socket)
    load.until_answered(WARM_ANSWERS)
    load.end()
    assert load.wrong == 0
    assert set(load.statuses) == {Status.OK}


def test_a_device_that_dies_while_idle_ends_the_daemon_that_keeps_it_warm(start: Start) -> None:
    daemon = start("--keep-warm-us", "500")
    daemon.control.kernel_fault = 700
    assert daemon.ended() == 1
    assert "keeping the device warm failed" in daemon.said()
    assert "(700)" in daemon.said()


def test_the_timeout_of_the_device_can_be_set(start: Start) -> None:
    daemon = start("--device-timeout-ms", "150", "--gpu", "0", "--mapped-io")
    load = Load(daemon.socket)
    load.until_answered(WARM_ANSWERS)
    daemon.control.hang = 1
    assert_died_well(daemon, load, "did not finish within 150 ms")
