"""What a measurement leaves on the disk."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from sigd.bench.errors import BadRequest, MissingDependency
from sigd.bench.files import write_whole
from sigd.bench.rig import SCHEDULED_MAX, check_scheduled


def test_file_is_whole_and_replaces_the_one_before(tmp_path: Path) -> None:
    for content in (b"one", b"another"):
        write_whole(tmp_path / "a.json", content)
        assert (tmp_path / "a.json").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_failed_write_leaves_what_was_there_and_nothing_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    write_whole(tmp_path / "a.json", b"before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MissingDependency, match=r"a\.json cannot be written: No space left on device"):
        write_whole(tmp_path / "a.json", b"after")
    assert (tmp_path / "a.json").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    came: list[bytes] = []
    reading = threading.Thread(target=lambda: came.append((tmp_path / "pipe").read_bytes()))
    reading.start()
    write_whole(tmp_path / "pipe", b"through")
    reading.join()
    assert came == [b"through"]
    assert (tmp_path / "pipe").is_fifo()


def test_schedule_too_large_for_memory_is_refused() -> None:
    check_scheduled(SCHEDULED_MAX / 10, 10.0, "--rate 5e+06")
    with pytest.raises(BadRequest, match=r"--rate 1e\+08 for 10 s would send 1e\+09 requests, .* 50,000,000"):
        check_scheduled(1e8, 10.0, "--rate 1e+08")
