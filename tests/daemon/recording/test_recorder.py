"""The daemon's side: what keeps it from recording is said at the start, in words that help."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from sigd.daemon.config.choices import LogFormat
from sigd.daemon.config.recorder import RecorderConfig
from sigd.daemon.errors import MissingDependency, UsageError
from sigd.daemon.recording import recorder as recorder_module
from sigd.daemon.recording.recorder import Recorder, check_recorder
from sigd.daemon.runtime.child_process import Starter
from sigd.wire.recording.reader import open_recordings


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where rings are made instead of /dev/shm."""
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setattr(recorder_module, "MEMORY", memory)
    return memory


@pytest.fixture
def config(tmp_path: Path) -> RecorderConfig:
    return RecorderConfig(directory=str(tmp_path / "recordings"), ring_mib=1, segment_mib=1, total_mib=4)


def start(config: RecorderConfig) -> Recorder:
    return Recorder.start(config, LogFormat.TEXT, Starter({0}))


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What runs instead of a writer: put a program there."""
    programs: list[str] = []
    really = subprocess.Popen

    def popen(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        return really([sys.executable, "-c", programs[0]] if programs else command, **options)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(subprocess, "Popen", popen)
    return programs


def test_a_recorder_starts_and_ends(memory: Path, config: RecorderConfig) -> None:
    recorder = start(config)
    (ring,) = memory.iterdir()
    assert ring.stat().st_mode & 0o777 == 0o600
    (recording,) = open_recordings(Path(config.directory))
    about = recording.about
    assert about is not None
    assert "onnxruntime" in about.runtimes
    status = recorder.status()
    assert status.recording == str(Path(config.directory) / recording.name)
    assert (status.requests, status.dropped, status.paused_because) == (0, 0, "")
    recorder.close()
    assert not list(memory.iterdir())
    assert not list(Path(config.directory).iterdir())


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        ({}, "/dev/shm"),
        ({"RUNTIME_DIRECTORY": ""}, "/dev/shm"),
        ({"RUNTIME_DIRECTORY": "/run/sigd-memory"}, "/run/sigd-memory"),
        ({"RUNTIME_DIRECTORY": "/run/sigd-memory/lob:/run/other"}, "/run/sigd-memory/lob"),
    ],
)
def test_where_rings_are_made(environ: dict[str, str], place: str) -> None:
    assert recorder_module.memory_in(environ) == Path(place)


def test_memory_that_is_not_to_be_had(
    memory: Path, config: RecorderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "MEMORY", memory / "nowhere")
    with pytest.raises(MissingDependency, match=r"no 1 MiB of memory .*No such file.*mount memory there"):
        start(config)


def test_a_directory_that_cannot_be_made(memory: Path, config: RecorderConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    wrong = msgspec.structs.replace(config, directory=str(tmp_path / "file" / "below"))
    with pytest.raises(UsageError, match="cannot be written there: Not a directory"):
        start(wrong)
    assert not list(memory.iterdir()), "no memory is left behind"
    with pytest.raises(UsageError, match="is no directory that this user may write to"):
        check_recorder(wrong, memory)
    for directory in (tmp_path / "not" / "yet", Path("not yet")):
        check_recorder(msgspec.structs.replace(config, directory=str(directory)), memory)


def test_check_sees_that_the_ring_does_not_fit(
    memory: Path, config: RecorderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = os.statvfs(memory)
    free_bytes = found.f_bavail * found.f_frsize
    large = msgspec.structs.replace(config, ring_mib=free_bytes // 2**20 + 1)
    with pytest.raises(MissingDependency, match=r"MiB of memory .* MiB are free\): make room in "):
        check_recorder(large, memory)
    monkeypatch.setattr(recorder_module, "MEMORY", memory / "none")
    with pytest.raises(MissingDependency, match=r"mount memory there \(mount -t tmpfs"):
        check_recorder(config, memory / "none")


def test_directory_that_the_service_manager_makes_need_not_be_there(
    memory: Path, config: RecorderConfig, tmp_path: Path
) -> None:
    state = tmp_path / "file" / "state"
    (tmp_path / "file").write_text("")
    inside = msgspec.structs.replace(config, directory=str(state / "recordings"))
    check_recorder(inside, memory, made=[state])
    with pytest.raises(UsageError, match="recordings cannot be written there"):
        check_recorder(inside, memory)


@pytest.mark.parametrize(
    ("program", "words"),
    [("raise SystemExit(7)", "ended with 7"), ("import time; time.sleep(60)", "was not ready in 0.2 s")],
)
def test_a_writer_that_does_not_start(
    memory: Path,
    config: RecorderConfig,
    programs: list[str],
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    words: str,
) -> None:
    monkeypatch.setattr(recorder_module, "START_TIMEOUT_S", 0.2 if "sleep" in program else 60.0)
    programs.append(program)
    with pytest.raises(MissingDependency, match=words):
        start(config)
    assert not list(memory.iterdir())
    assert not list(Path(config.directory).iterdir())


def test_a_writer_that_takes_long_to_end_is_left_to_itself(
    memory: Path, config: RecorderConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recorder_module, "END_TIMEOUT_S", 0.0)
    recorder = start(config)
    # To stop the process in its tracks; a recorder shows its writer to no other.
    writer = recorder._writer
    writer.send_signal(signal.SIGSTOP)
    recorder.close()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "is still storing, 32 bytes are left; it ends by itself" in caplog.text
    writer.send_signal(signal.SIGCONT)
    assert writer.wait(60) == 0
    assert not list(memory.iterdir())
