"""How a daemon ends: everything accepted is answered, nothing is left behind."""

from __future__ import annotations

import signal
import socket
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from sigd.wire.client import Client, connect
from sigd.wire.errors import ConnectFailed, Rejected, SessionClosed
from sigd.wire.messages import Hello
from sigd.wire.status import GoodbyeCode, Status

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
    from tests.e2e.conftest import Daemon, StartDaemon

ROW = np.array([3, 0, 0, 0], np.float32)


class Pump(threading.Thread):
    """A client that keeps `in_flight` requests unanswered until the daemon closes, and keeps the account."""

    def __init__(self, daemon: Daemon, in_flight: int, *, heeds_goodbye: bool) -> None:
        super().__init__(daemon=True)
        self.client: Client = daemon.connect()
        self.in_flight = in_flight
        self.heeds_goodbye = heeds_goodbye
        self.sent = 0
        self.statuses: list[int] = []
        self.running = threading.Event()
        self.closed: SessionClosed | None = None

    def run(self) -> None:
        try:
            while not (self.heeds_goodbye and self.client.goodbye_code is not None):
                self.sent += len(self.client.send_many([ROW] * (self.in_flight - self.client.unanswered)))
                self._receive()
                self.running.set()
            for answer in self.client.goodbye():
                self.statuses.append(int(answer["status"]))
        except SessionClosed as error:
            self.closed = error
        finally:
            self.client.close()

    def _receive(self) -> None:
        for answer in self.client.receive_many():
            assert answer["sequence"] == len(self.statuses), "in order, none twice, none left out"
            self.statuses.append(int(answer["status"]))
            if answer["status"] == Status.OK:
                assert answer["outputs"][0] == 3.0


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("idle", ["spin", "block"])
def test_a_drain_under_load_answers_everything_accepted(
    start_daemon: StartDaemon, models: ModelMaker, how: signal.Signals, idle: str
) -> None:
    daemon = start_daemon("--model", str(models.copied(4)), "--idle", idle)
    pumps = [Pump(daemon, in_flight, heeds_goodbye=True) for in_flight in (1, 64, 200)]
    for pump in pumps:
        pump.start()
        pump.running.wait()
    assert daemon.stop(how) == 0
    for pump in pumps:
        pump.join()
        assert pump.client.goodbye_code == GoodbyeCode.DRAINING, "each was told to go"
        assert set(pump.statuses) <= {Status.OK, Status.DRAINING}
        # Who has heard it in time went with all its answers; on a busy machine the daemon may have closed
        # before.
        if pump.closed is None:
            assert len(pump.statuses) == pump.sent
    assert sorted(path.name for path in daemon.folder.iterdir()) == ["stderr"]


def test_clients_that_keep_sending_do_not_hold_the_end_up(
    start_daemon: StartDaemon, models: ModelMaker
) -> None:
    daemon = start_daemon("--model", str(models.copied(4)), config={"drain_timeout_s": 30.0})
    pumps = [Pump(daemon, in_flight, heeds_goodbye=False) for in_flight in (1, 200)]
    for pump in pumps:
        pump.start()
        pump.running.wait()
    assert daemon.stop() == 0, daemon.said()
    for pump in pumps:
        pump.join()
        assert pump.closed is not None
        assert pump.client.goodbye_code == GoodbyeCode.DRAINING
        assert pump.statuses[-1] == Status.DRAINING


def test_a_drain_waits_for_a_slow_model(start_daemon: StartDaemon, models: ModelMaker) -> None:
    daemon = start_daemon("--model", str(models.slow(4, 2, layers=400)), "--batch-rows-max", "4")
    with daemon.connect() as client:
        client.send_many([ROW] * 200)
        client.receive()
        assert daemon.stop() == 0
        answers = client.receive_many(199)
        # What was read before the signal is answered by the model, the rest is told why not; nothing is lost.
        assert set(answers["status"]) <= {Status.OK, Status.DRAINING}
        assert client.goodbye_code == GoodbyeCode.DRAINING


def test_no_new_connection_while_draining(start_daemon: StartDaemon, models: ModelMaker) -> None:
    daemon = start_daemon("--model", str(models.copied(4)))
    with daemon.connect() as client:
        daemon.process.send_signal(signal.SIGTERM)
        while client.goodbye_code is None:
            client.heartbeat()
        with pytest.raises(ConnectFailed):
            connect(daemon.socket)
        assert client.request(ROW).status == Status.DRAINING
        client.goodbye()
    assert daemon.process.wait(60) == 0


def test_a_connection_that_has_said_nothing_is_closed(start_daemon: StartDaemon, models: ModelMaker) -> None:
    daemon = start_daemon("--model", str(models.copied(4)))
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(daemon.socket))
        daemon.until(lambda status: status.connections_open == 1)
        assert daemon.stop() == 0
        assert silent.recv(1) == b""


def test_a_successor_may_start_while_the_old_one_drains(
    start_daemon: StartDaemon, models: ModelMaker
) -> None:
    model = str(models.copied(4))
    old = start_daemon("--model", model)
    with old.connect() as client:
        old.process.send_signal(signal.SIGTERM)
        while client.goodbye_code is None:
            client.heartbeat()
        new = start_daemon("--model", model, folder=old.folder)
        client.goodbye()
    assert old.process.wait(60) == 0
    with new.connect() as client:
        assert client.welcome.daemon_pid == new.process.pid
        assert client.request(ROW).status == Status.OK


def test_a_killed_daemons_sockets_are_replaced(start_daemon: StartDaemon, models: ModelMaker) -> None:
    model = str(models.copied(4))
    killed = start_daemon("--model", model)
    killed.stop(signal.SIGKILL)
    assert killed.socket.is_socket()
    new = start_daemon("--model", model, folder=killed.folder)
    with new.connect() as client:
        assert client.request(ROW).status == Status.OK


@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35])
def test_a_signal_while_it_starts_leaves_nothing_behind(
    start_daemon: StartDaemon, models: ModelMaker, delay_s: float
) -> None:
    daemon = start_daemon("--model", str(models.copied(4)), ready=False)
    time.sleep(delay_s)
    assert daemon.stop() in (0, -signal.SIGTERM)
    assert sorted(path.name for path in daemon.folder.iterdir()) == ["stderr"]


def test_a_second_signal_changes_nothing(start_daemon: StartDaemon, models: ModelMaker) -> None:
    daemon = start_daemon("--model", str(models.slow(4, 2, layers=400)), "--batch-rows-max", "4")
    with daemon.connect() as client:
        client.send_many([ROW] * 100)
        client.receive()
        daemon.process.send_signal(signal.SIGTERM)
        daemon.process.send_signal(signal.SIGINT)
        assert daemon.stop() == 0
        assert len(client.receive_many(99)) == 99


def test_a_reader_that_hangs_holds_the_end_up_for_its_time_only(
    start_daemon: StartDaemon, models: ModelMaker
) -> None:
    daemon = start_daemon("--model", str(models.copied(4)), config={"drain_timeout_s": 0.2})
    with socket.socket(socket.AF_UNIX) as hanging:
        hanging.connect(str(daemon.socket))
        hanging.sendall(Hello().encode())
        heartbeat = bytes([8, 0, 4, 0, 91, 0, 1, 0]) + bytes(8)
        hanging.sendall(heartbeat * 20_000)
        daemon.until(lambda status: status.heartbeats == 20_000)
        assert daemon.stop() == 0


def test_rejected_is_not_what_a_drained_client_is_told(start_daemon: StartDaemon, models: ModelMaker) -> None:
    daemon = start_daemon("--model", str(models.copied(4)))
    with daemon.connect() as client:
        assert daemon.stop() == 0
        with pytest.raises(SessionClosed) as caught:
            client.receive()
        assert not isinstance(caught.value, Rejected)
        assert client.goodbye_code == GoodbyeCode.DRAINING
