"""`sigd replay` and `sigd inspect` of what a real daemon recorded, as their users run them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sigd.wire.status import Status

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
    from tests.e2e.conftest import Daemon

FEATURES, OUTPUTS = 5, 3


def sigd(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "sigd.daemon", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def told(*arguments: object, code: int = 0) -> Any:
    """What a command prints as JSON."""
    done = sigd(*arguments, "--json")
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def wait_until_stored(daemon: Daemon) -> None:
    daemon.until(lambda s: s.recorder is not None and s.recorder.written_bytes == s.recorder.stored_bytes)


def ask(daemon: Daemon) -> None:
    """Two clients at a time and one alone; every status that can be had without waiting."""
    draw = np.random.default_rng(1)
    rows = draw.standard_normal((40, FEATURES), np.float32)
    with daemon.connect(client_name="one") as one, daemon.connect(client_name="two") as two:
        for _ in range(20):
            one.send_many(rows[:7])
            two.send_many(rows[7:20])
            assert (one.receive_many(7)["status"] == Status.OK).all()
            assert (two.receive_many(13)["status"] == Status.OK).all()
        # What follows is stored for itself, so that not all is lost with one damaged block.
        wait_until_stored(daemon)
        for row in rows:
            assert one.request(row).status is Status.OK
        assert one.request(np.full(FEATURES, np.nan, np.float32)).status is Status.BAD_INPUT
        assert one.request(rows[0], deadline_ns=1).status is Status.EXPIRED


@pytest.fixture(scope="module")
def model(models: ModelMaker) -> Path:
    return models.mlp(FEATURES, (32,), OUTPUTS, seed=3)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A directory with two recordings of the same model."""
    from tests.e2e.conftest import Daemon

    folder = tmp_path_factory.mktemp("recorded")
    directory = folder / "recordings"
    for number in range(2):
        own = folder / f"daemon-{number}"
        own.mkdir()
        # Its bits are partly the oracle's, and its rows come in batches: what the tests count on.
        options = ("--model", str(model), "--backend", "onnxruntime")
        daemon = Daemon(own, *options, "--record", str(directory))
        try:
            daemon.wait_until_ready()
            ask(daemon)
            assert daemon.stop() == 0
        finally:
            daemon.give_up()
    return directory


OK, ALL = 2 * (20 * 20 + 40), 2 * (20 * 20 + 42)


@pytest.fixture
def copy(recorded: Path, tmp_path: Path) -> Path:
    """One of the recordings, to be spoilt."""
    (segment, _) = sorted(recorded.iterdir())
    return Path(shutil.copy(segment, tmp_path / segment.name))


def test_the_same_model_gives_the_same_bits(recorded: Path, model: Path) -> None:
    report = told("replay", recorded)
    assert len(report["recordings"]) == 2
    assert (report["requests"], report["replayed"], report["passed"]) == (ALL, OK, True)
    assert report["left_out"] == {"BAD_INPUT": 2, "EXPIRED": 2}
    assert (report["not_recorded"], report["damage"], report["made_elsewhere"]) == (0, [], [])
    (compared,) = report["models"]
    assert compared["file"] == str(model)
    assert compared["sha256"] == compared["recorded_sha256"]
    assert (compared["requests"], compared["equal"], compared["incomplete"]) == (OK, OK, 0)
    assert compared["batches"] >= 2 * 60, "a request that ran alone is run alone"
    done = sigd("replay", recorded)
    assert done.returncode == 0
    assert f"bit for bit equal: {OK:,} of {OK:,}" in done.stdout
    assert done.stdout.endswith("passed\n")
    assert done.stderr == "", "no progress bar where there is no terminal"


def test_one_segment_and_a_limit(recorded: Path) -> None:
    report = told("replay", sorted(recorded.iterdir())[1], "--limit", 10)
    assert (report["requests"], report["replayed"]) == (ALL // 2, 10)
    assert report["left_out"]["past the limit"] == OK // 2 - 10


def test_another_model_is_compared(recorded: Path, models: ModelMaker) -> None:
    other = models.mlp(FEATURES, (32,), OUTPUTS, seed=4)
    report = told("replay", recorded, "--model", other)
    (compared,) = report["models"]
    assert compared["sha256"] != compared["recorded_sha256"]
    assert compared["equal"] == 0
    assert compared["max_difference"] > 0.01
    assert 0 < compared["decisions_changed"] < OK
    assert report["passed"], "it is another one"
    done = sigd("replay", recorded, "--model", other, "--tolerance", 0.001)
    assert done.returncode == 1
    assert "ANOTHER model" in done.stdout
    assert done.stdout.endswith("FAILED\n")
    assert told("replay", recorded, "--model", other, "--tolerance", 1e6)["passed"]


def test_the_oracle_gives_other_bits_but_no_others_to_speak_of(recorded: Path) -> None:
    report = told("replay", recorded, "--backend", "oracle", code=1)
    (compared,) = report["models"]
    assert 0 < compared["equal"] < OK
    assert 0 < compared["max_difference"] < 1e-4
    first = compared["first_difference"]
    assert first["recorded"] == pytest.approx(first["replayed"], abs=1e-4)
    assert told("replay", recorded, "--backend", "oracle", "--tolerance", 1e-4)["passed"]


@pytest.mark.parametrize("gone", [True, False])
def test_a_model_that_is_not_the_one_any_more_is_asked_for(
    copy: Path, model: Path, models: ModelMaker, gone: bool
) -> None:
    kept = model.read_bytes()
    try:
        if gone:
            model.unlink()
        else:
            shutil.copy(models.mlp(FEATURES, (32,), OUTPUTS, seed=5), model)
        done = sigd("replay", copy)
    finally:
        model.write_bytes(kept)
    assert done.returncode == 2
    assert ("not there any more" if gone else "not the model that was recorded any more") in done.stderr
    assert "give --model FILE" in done.stderr


@pytest.mark.parametrize("how", ["cut", "altered"])
def test_a_damaged_recording_says_from_where_and_what_is_whole_can_be_had(copy: Path, how: str) -> None:
    size = copy.stat().st_size
    if how == "cut":
        os.truncate(copy, size - 100)
    else:
        with copy.open("r+b") as file:
            file.seek(size - 5000)
            file.write(b"\xff")
    done = sigd("replay", copy)
    assert done.returncode == 2
    assert f"{copy}: from byte " in done.stderr
    assert "--salvage" in done.stderr
    report = told("replay", copy, "--salvage", code=1)
    assert 0 < report["replayed"] < OK // 2
    assert len(report["damage"]) == 1
    assert not report["passed"]
    assert all(compared["equal"] == compared["requests"] for compared in report["models"])
    assert "NOT WHOLE: the " in sigd("replay", copy, "--salvage").stdout
    done = sigd("inspect", copy)
    assert done.returncode == 1
    assert f"damaged       {copy}: from byte " in done.stdout


def test_what_is_missing_behind_a_flipped_byte_is_not_said_to_be_unrecorded(copy: Path) -> None:
    """The first block holds the first burst: what follows it tells how many requests it had."""
    content = bytearray(copy.read_bytes())
    content[len(content) // 4] ^= 0xFF
    copy.write_bytes(content)
    (found,) = told("inspect", copy, code=1)
    assert found["damage"]
    assert found["not_recorded"] == 0
    assert found["earlier"] + found["requests"] + found["unreadable"] == ALL // 2
    assert "not recorded" not in sigd("inspect", copy).stdout
    report = told("replay", copy, "--salvage", code=1)
    assert (report["not_recorded"], report["unreadable"]) == (0, found["unreadable"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--speed", "2"], "leave out --speed"),
        (["--out", "x.csv"], "leave out --out"),
        (["--socket", "x"], "leave out --socket"),
        (["--backend", "tpu"], "no backend is called 'tpu'"),
        (["--limit", "0"], "--limit"),
        (["--model", "/nonexistent.onnx"], "nonexistent.onnx"),
    ],
)
def test_wrong_usage(copy: Path, arguments: list[str], words: str) -> None:
    done = sigd("replay", copy, *arguments)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr


def test_a_model_of_another_shape_leaves_nothing_to_run(copy: Path, models: ModelMaker) -> None:
    done = sigd("replay", copy, "--model", models.mlp(FEATURES + 1, (4,), OUTPUTS))
    assert done.returncode == 2
    assert f"another shape {OK // 2}" in done.stderr


@pytest.mark.parametrize("what", ["an empty directory", "a capture's option", "no recording and no capture"])
def test_what_is_no_recording(tmp_path: Path, what: str) -> None:
    if what == "an empty directory":
        done = sigd("replay", tmp_path)
        assert "no recording is in it: sigd serve --record" in done.stderr
        assert sigd("inspect", tmp_path).returncode == 2
    else:
        file = tmp_path / "file.gz"
        file.write_bytes(b"x" * 100)
        done = sigd("replay", file, *(["--tolerance", "1"] if "option" in what else []))
        assert ("leave out --tolerance" if "option" in what else "gzip") in done.stderr
    assert done.returncode == 2


def test_inspect_says_who_asked_what_and_when(recorded: Path) -> None:
    first, second = told("inspect", recorded)
    for summary in (first, second):
        assert summary["ended"]
        assert summary["ring"] is None
        assert (summary["requests"], summary["earlier"], summary["not_recorded"]) == (ALL // 2, 0, 0)
        assert summary["by_status"]["OK"] == OK // 2
        assert 0 < summary["span_s"] < 60
        assert summary["rate_per_s"] == pytest.approx(summary["requests"] / summary["span_s"])
        assert summary["first_at"] < summary["last_at"]
        clients = {client["client"]: client for client in summary["clients"]}
        assert {name: client["requests"] for name, client in clients.items()} == {"one": 182, "two": 260}
        assert clients["one"]["by_status"] == {"OK": 180, "EXPIRED": 1, "BAD_INPUT": 1}
        assert 0 < clients["one"]["latency_us"]["p50"] <= clients["one"]["latency_us"]["p99"]
        ((file, size_bytes),) = summary["files"].items()
        assert size_bytes == (recorded / file).stat().st_size
    assert first["files"].keys() != second["files"].keys()
    assert first["last_at"] < second["first_at"]
    shown = sigd("inspect", min(recorded.iterdir())).stdout
    assert "client        'one' (stream), model model-" in shown
    assert "OK 180, EXPIRED 1, BAD_INPUT 1; p50 " in shown


@pytest.fixture
def running(tmp_path: Path, model: Path) -> Iterator[tuple[Daemon, Path]]:
    from tests.e2e.conftest import Daemon

    folder = tmp_path / "running"
    folder.mkdir()
    daemon = Daemon(folder, "--model", str(model), "--record", str(tmp_path / "recordings"))
    try:
        daemon.wait_until_ready()
        yield daemon, tmp_path / "recordings"
        assert daemon.stop() == 0
    finally:
        daemon.give_up()


def test_a_recording_can_be_read_while_it_is_written(running: tuple[Daemon, Path]) -> None:
    daemon, directory = running
    ask(daemon)
    (summary,) = told("inspect", directory)
    wait_until_stored(daemon)
    assert (summary["requests"], summary["damage"], summary["ended"]) == (ALL // 2, [], False)
    assert summary["ring"].startswith("/dev/shm/")
    assert told("replay", directory)["replayed"] == OK // 2
    done = sigd("status", "--socket", daemon.socket)
    assert f"recording {directory}/" in done.stdout
    assert f": {ALL // 2} requests, 0 dropped, 0 bytes not stored yet" in done.stdout
