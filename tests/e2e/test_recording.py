"""`sigd serve --record`: whatever ends the daemon, its writer or both, what was answered can be read back."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest
from tests.conftest import children_of

from sigd.bench.load.channel import BrokenContract, SocketChannel
from sigd.bench.load.ring_channel import RingChannel
from sigd.daemon.recording.status import RecorderStatus
from sigd.wire import fields
from sigd.wire.layout import frame_dtype, header_word, response_frame_bytes
from sigd.wire.messages import Hello
from sigd.wire.recording.reader import Damage, Exchanges, Recording, open_recordings
from sigd.wire.status import Status, Transport

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
    from tests.e2e.conftest import Daemon, StartDaemon

PATIENCE_S = 60.0
FEATURES = 5
"""An odd number: such frames are padded."""
OUTPUTS = 3
Frames = npt.NDArray[np.void]


def read(directory: Path) -> tuple[Recording, list[Exchanges]]:
    """The only recording in a directory, which must not be damaged."""
    (recording,) = open_recordings(directory)
    found = list(recording.read())
    assert not [str(item) for item in found if isinstance(item, Damage)]
    return recording, [item for item in found if isinstance(item, Exchanges)]


def by_client(exchanges: list[Exchanges]) -> dict[str, bytes]:
    """All answers of each client, in order."""
    names = dict.fromkeys(exchange.facts.client for exchange in exchanges)
    return {
        name: b"".join(e.responses.tobytes() for e in exchanges if e.facts.client == name) for name in names
    }


def status_of(daemon: Daemon) -> RecorderStatus:
    recorder = daemon.status().recorder
    assert recorder is not None
    return recorder


def writers_of(daemon: Daemon) -> list[int]:
    """The process ids of those of the daemon's children that keep recordings."""
    children = children_of(daemon.process.pid)
    return [child for child in children if b"recording.writer" in command_of(child)]


def command_of(pid: int) -> bytes:
    """Empty once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def writer_of(daemon: Daemon) -> int:
    """The process id of the only one."""
    (pid,) = writers_of(daemon)
    return pid


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.01)


class Talker:
    """A client that sees its own frames, over either transport."""

    def __init__(self, daemon: Daemon, name: str, transport: Transport) -> None:
        self.channel = (RingChannel if transport is Transport.SHARED_MEMORY else SocketChannel)(
            str(daemon.socket)
        )
        self.channel.open(0, Hello(transport=transport, client_name=name).encode())

    def exchange(self, requests: Frames) -> bytes | None:
        """The answers to all of them; None where the daemon is gone before all have come."""
        left = requests.data.cast("B")
        answers = b""
        deadline_s = time.monotonic() + PATIENCE_S
        while len(answers) < len(requests) * response_frame_bytes(OUTPUTS):
            assert time.monotonic() < deadline_s, "no answer came"
            try:
                left = left[self.channel.send(left) :]
                received = self.channel.receive()
            except BrokenContract:
                received = None
            except OSError:
                received = None
            if received is None:
                return None
            answers += received
        return answers

    def close(self) -> None:
        self.channel.close()


def frames(rows: int, seed: int) -> Frames:
    """Requests of random features."""
    made = np.zeros(rows, frame_dtype(fields.SIGNAL_REQUEST, FEATURES, OUTPUTS))
    made.view(np.uint64).reshape(rows, -1)[:, 0] = header_word(
        fields.SIGNAL_REQUEST.template_id, made.itemsize
    )
    draw = np.random.default_rng(seed)
    made["sequence"] = draw.integers(0, 1 << 63, rows)
    made["features"] = draw.standard_normal((rows, FEATURES), np.float32)
    return made


class BusyClient(threading.Thread):
    """A client that asks until its daemon is gone, and keeps every answer to what was answered as a whole."""

    def __init__(self, daemon: Daemon, name: str, in_flight: int, transport: Transport) -> None:
        super().__init__(daemon=True, name=name)
        self.talker = Talker(daemon, name, transport)
        self.requests = frames(in_flight, in_flight)
        self.answers: list[bytes] = []

    def run(self) -> None:
        while (answers := self.talker.exchange(self.requests)) is not None:
            self.answers.append(answers)
        self.talker.close()


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "recordings"
    yield directory
    # A ring outlives its daemon and its writer, on purpose.
    for link in directory.glob("*.ring"):
        link.resolve().unlink(missing_ok=True)


@pytest.fixture
def model(models: ModelMaker) -> Path:
    return models.mlp(FEATURES, (8,), OUTPUTS)


@pytest.mark.parametrize("transport", Transport)
def test_everything_asked_and_answered_is_in_the_recording(
    start_daemon: StartDaemon, directory: Path, model: Path, transport: Transport
) -> None:
    config = {"model": f'"{model}"', "recorder.ring_mib": 1, "recorder.segment_mib": 1}
    daemon = start_daemon("--record", str(directory), config=config)
    talker = Talker(daemon, "engine", transport)
    asked, answered, total = b"", b"", 0
    # Several times round the ring: nothing of an older lap may be left in the padding.
    for _ in range(40):
        for rows in (*[64] * 10, *[1] * 20):
            requests = frames(rows, total)
            answers = talker.exchange(requests)
            assert answers is not None
            asked, answered, total = asked + requests.tobytes(), answered + answers, total + rows
        daemon.until(lambda s: s.recorder is not None and s.recorder.written_bytes == s.recorder.stored_bytes)
    status = daemon.until(lambda s: s.recorder is not None and s.recorder.requests == total).recorder
    assert status is not None
    assert (status.dropped, status.paused_because) == (0, "")
    assert status.recording.startswith(str(directory))
    talker.close()
    assert daemon.stop() == 0
    assert not list(Path("/dev/shm").glob(f"sigd-{Path(status.recording).name}*"))
    recording, exchanges = read(directory)
    assert recording.ended
    assert len(recording.segments) == 4
    assert b"".join(exchange.requests.tobytes() for exchange in exchanges) == asked
    assert b"".join(exchange.responses.tobytes() for exchange in exchanges) == answered
    assert {exchange.facts.transport for exchange in exchanges} == {transport.name.lower()}
    assert {exchange.batch == 0 for exchange in exchanges} == {True, False}, "alone, and in batches"


@pytest.mark.slow
@pytest.mark.parametrize("victims", ["the daemon", "the daemon and its writer"])
@pytest.mark.parametrize("transport", Transport)
def test_a_killed_daemon_loses_nothing_but_the_batch_it_was_sending(
    start_daemon: StartDaemon, directory: Path, model: Path, transport: Transport, victims: str
) -> None:
    daemon = start_daemon("--model", str(model), "--record", str(directory))
    clients = [
        BusyClient(daemon, name, in_flight, transport) for name, in_flight in (("one", 1), ("many", 100))
    ]
    for client in clients:
        client.start()
    wait_until(lambda: all(len(client.answers) > 200 for client in clients), "no answers came")
    if victims != "the daemon":
        os.kill(writer_of(daemon), signal.SIGKILL)
    daemon.stop(signal.SIGKILL)
    for client in clients:
        client.join(PATIENCE_S)
        assert not client.is_alive()
    if victims == "the daemon":
        wait_until(lambda: not list(directory.glob("*.ring")), "the writer did not end")
    else:
        assert list(directory.glob("*.ring")), "what was not stored is still in the ring"
    recording, exchanges = read(directory)
    assert not recording.ended
    recorded = by_client(exchanges)
    lost = []
    for client in clients:
        received = b"".join(client.answers)
        of_it = recorded[client.name]
        common = min(len(received), len(of_it))
        assert received[:common] == of_it[:common]
        lost.append(received[common:])
    # Sent and not recorded yet: the answers of one batch, which all carry its time in the model.
    last = np.frombuffer(b"".join(lost), frame_dtype(fields.SIGNAL_RESPONSE, FEATURES, OUTPUTS))
    assert len(last) <= 64
    assert len(set(zip(last["infer_ns"].tolist(), last["batch_rows"].tolist(), strict=True))) <= 1
    if victims != "the daemon":
        start_daemon("--model", str(model), "--record", str(directory))
        wait_until(lambda: len(list(directory.glob("*.ring"))) == 1, "what was left behind is not stored")
        first, _ = open_recordings(directory)
        assert first.ring is None
        assert by_client([item for item in first.read() if isinstance(item, Exchanges)]) == recorded


def test_what_was_answered_before_a_heartbeat_survives_any_kill(
    start_daemon: StartDaemon, directory: Path, model: Path
) -> None:
    daemon = start_daemon("--model", str(model), "--record", str(directory))
    row = np.ones(FEATURES, np.float32)
    with daemon.connect() as client:
        for _ in range(100):
            assert client.request(row).status is Status.OK
        client.heartbeat()
        os.kill(writer_of(daemon), signal.SIGKILL)
        daemon.stop(signal.SIGKILL)
    _, exchanges = read(directory)
    assert sum(len(exchange.requests) for exchange in exchanges) == 100


def test_a_writer_that_is_killed_is_started_again_and_nothing_is_lost(
    start_daemon: StartDaemon, directory: Path, model: Path
) -> None:
    daemon = start_daemon("--model", str(model), "--record", str(directory))
    row = np.ones(FEATURES, np.float32)
    with daemon.connect() as client:
        for kill in (True, True, False):
            for _ in range(50):
                client.request(row)
            if kill:
                writer = writer_of(daemon)
                os.kill(writer, signal.SIGKILL)
                wait_until(lambda: writers_of(daemon) not in ([], [writer]), "no other writer")  # noqa: B023
    assert daemon.stop() == 0
    assert "was ended by SIGKILL and is started again in 1 s" in daemon.said()
    recording, exchanges = read(directory)
    assert recording.ended
    assert sum(len(exchange.requests) for exchange in exchanges) == 150


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_reaches_the_writer_as_well_loses_nothing(
    start_daemon: StartDaemon, directory: Path, model: Path, how: signal.Signals
) -> None:
    daemon = start_daemon("--model", str(model), "--record", str(directory))
    with daemon.connect() as client:
        os.kill(writer_of(daemon), how)
        client.request(np.ones(FEATURES, np.float32))
    assert daemon.stop() == 0
    recording, (exchange,) = read(directory)
    assert recording.ended
    assert len(exchange.requests) == 1


def test_daemon_without_requests_leaves_no_recording(
    start_daemon: StartDaemon, directory: Path, model: Path
) -> None:
    daemon = start_daemon("--model", str(model), "--record", str(directory))
    assert len(list(directory.iterdir())) == 2
    assert daemon.stop() == 0
    assert list(directory.iterdir()) == []


def test_the_writer_leaves_the_daemons_core(start_daemon: StartDaemon, directory: Path, model: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("needs two cores")
    daemon = start_daemon("--model", str(model), "--record", str(directory), "--cpu", str(cores[0]))
    assert os.sched_getaffinity(daemon.process.pid) == {cores[0]}
    assert cores[0] not in os.sched_getaffinity(writer_of(daemon))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "sigd-test", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_with_a_full_disk_serving_goes_on_and_recording_does_when_there_is_room(
    start_daemon: StartDaemon, small_disk: Path, model: Path
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(6 << 20))
    config = {"model": f'"{model}"', "recorder.ring_mib": 1, "recorder.segment_mib": 1}
    daemon = start_daemon("--record", str(small_disk), config=config)
    talker = Talker(daemon, "engine", Transport.STREAM)
    total = 0
    while not (status_of(daemon).paused_because and status_of(daemon).dropped):
        answers = talker.exchange(frames(256, total))
        assert answers is not None
        assert total < 1_000_000
        total += 256
    assert status_of(daemon).paused_because == "No space left on device"
    ballast.unlink()
    daemon.until(lambda s: s.recorder is not None and not s.recorder.paused_because)
    assert talker.exchange(frames(1, 1)) is not None
    talker.close()
    dropped = status_of(daemon).dropped
    assert daemon.stop() == 0
    said = daemon.said()
    assert said.count("recording pauses") == 1
    assert f"recording goes on; {dropped} requests were not recorded" in said
    recording, exchanges = read(small_disk)
    assert recording.ended
    assert sum(len(exchange.requests) for exchange in exchanges) == total + 1 - dropped
    assert exchanges[-1].first == total


@pytest.mark.parametrize("flag", [[], ["--check"]])
def test_a_directory_that_cannot_be_written_to_is_wrong_usage(
    start_daemon: StartDaemon, tmp_path: Path, flag: list[str]
) -> None:
    (tmp_path / "file").write_text("")
    daemon = start_daemon("--record", str(tmp_path / "file" / "below"), *flag, ready=False)
    assert daemon.process.wait(PATIENCE_S) == 2
    assert "recordings cannot be written there" in daemon.said()
