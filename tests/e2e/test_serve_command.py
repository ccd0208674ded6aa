"""`sigd serve` and `sigd status` as commands: what they say, and the codes that they end with."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sigd.daemon.serving import native_lane
from sigd.wire.ring import why_not_here

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
    from tests.e2e.conftest import StartDaemon

needs_lanes = pytest.mark.skipif(
    bool(why_not_here()) or not native_lane.is_built(),
    reason=why_not_here() or "lanes are not built: python hatch_build.py",
)
ROW = [1.0, 2.0, 3.0, 4.0]


def sigd(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "sigd.daemon", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "COLUMNS": "160"},
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_check_of_what_is_good(models: ModelMaker, tmp_path: Path) -> None:
    config = tmp_path / "sigd.toml"
    config.write_text('idle = "spin"\nsocket = "s.sock"\n')
    done = sigd("serve", "--check", "--config", config, "--model", models.copied(4))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("good: ")
    assert re.search(r"\(4 -> 4\) runs on (native|onnxruntime)", done.stdout)
    assert str(tmp_path / "s.sock") in done.stdout
    assert list(tmp_path.iterdir()) == [config], "nothing was opened"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "none.onnx"], "none.onnx"),
        (["--model", "{mixing}"], "depend"),
        (["--model", "{text}"], "model.onnx"),
        (["--model", "{copied}", "--backend", "tpu"], "choose from auto, onnxruntime"),
        (["--model", "{copied}", "--cpu", "4095"], "it may use: "),
        (["--model", "{copied}", "--batch-rows-max", "0"], "1<=x<=4096"),
        (["--model", "{copied}", "--idle", "doze"], "'spin', 'backoff', 'block'"),
        (["--model", "{copied}", "--in-flight-max", "100000"], "<= 65536"),
        (["--model", "{copied}", "--socket", "/tmp/" + "x" * 120], "107 bytes"),
        (["--model", "{copied}", "--config", "none.toml"], "cannot be read"),
        (["--model", "{copied}", "--config", "{text}"], "no TOML"),
        (["--no-such-flag"], "No such option"),
    ],
)
@pytest.mark.parametrize("check", [True, False])
def test_wrong_usage_and_input_end_with_2_and_the_reason(
    models: ModelMaker, tmp_path: Path, arguments: list[str], said: str, check: bool
) -> None:
    text = tmp_path / "model.onnx"
    text.write_text("this is [ no model")
    places = {"{mixing}": models.mixing(4), "{copied}": models.copied(4), "{text}": text}
    asked = [places.get(argument, argument) for argument in arguments]
    if "--socket" not in asked:
        asked += ["--socket", tmp_path / "s.sock"]
    done = sigd("serve", *(["--check"] if check else []), *asked)
    assert done.returncode == 2, done
    assert said in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("which", ["m.onnx", "sigd.toml"])
def test_what_others_could_change_is_not_served_unless_that_is_asked_for(
    start_daemon: StartDaemon, models: ModelMaker, tmp_path: Path, which: str
) -> None:
    model, config = tmp_path / "m.onnx", tmp_path / "sigd.toml"
    model.write_bytes(models.copied(4).read_bytes())
    config.write_text('model = "m.onnx"')
    for file in (model, config):
        file.chmod(0o644)
    arguments = ("--config", str(config), "--socket", str(tmp_path / "s"))
    assert sigd("serve", "--check", *arguments).returncode == 0
    (tmp_path / which).chmod(0o666)
    for check in ([], ["--check"]):
        done = sigd("serve", *check, *arguments)
        assert done.returncode == 2
        assert f"{tmp_path / which} has mode 0666" in done.stderr
        assert f"o-w {tmp_path / which}; or serve with --allow-insecure-files" in done.stderr
    daemon = start_daemon("--config", str(config), "--allow-insecure-files")
    with daemon.connect() as client:
        assert client.request(ROW).outputs.tolist() == ROW


def test_a_place_that_is_taken_ends_with_3(start_daemon: StartDaemon, models: ModelMaker) -> None:
    model = models.copied(4)
    daemon = start_daemon("--model", str(model))
    done = sigd("serve", "--model", model, "--socket", daemon.socket)
    assert done.returncode == 3
    assert "a daemon is serving there already" in done.stderr
    with daemon.connect() as client:
        assert client.request(ROW).outputs.tolist() == ROW


def test_a_place_that_cannot_be_used_ends_with_3_and_leaves_nothing(
    models: ModelMaker, tmp_path: Path
) -> None:
    done = sigd("serve", "--model", models.copied(4), "--socket", tmp_path / "no" / "such" / "s")
    assert done.returncode == 3
    assert "cannot be made" in done.stderr
    (tmp_path / "s.admin").write_text("in the way")
    done = sigd("serve", "--model", models.copied(4), "--socket", tmp_path / "s")
    assert done.returncode == 2
    assert "left alone" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["s.admin"]


def test_pinned_to_a_core(start_daemon: StartDaemon, models: ModelMaker) -> None:
    core = max(os.sched_getaffinity(0))
    daemon = start_daemon("--model", str(models.copied(4)), "--cpu", str(core))
    assert daemon.ready.endswith(f"idle=backoff cpu={core}\n")
    assert os.sched_getaffinity(daemon.process.pid) == {core}


def test_one_thread_serves(start_daemon: StartDaemon, models: ModelMaker) -> None:
    """Threads that were not asked for would take turns with the loop, and be woken for sums too small to
    share."""
    daemon = start_daemon("--model", str(models.copied(4)))
    threads = Path(f"/proc/{daemon.process.pid}/task")
    assert len(list(threads.iterdir())) == 1


def test_ready_line_is_not_read(start_daemon: StartDaemon, models: ModelMaker) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    daemon = start_daemon("--model", str(models.copied(4)), ready=False, stdout=writing)
    os.close(writing)
    while not daemon.socket.with_name("sigd.sock.admin").exists():
        assert daemon.process.poll() is None, daemon.said()
    with daemon.connect() as client:
        assert client.request(ROW).outputs.tolist() == ROW
    assert daemon.stop() == 0
    assert "standard output cannot be written to: Broken pipe" in daemon.said()


def test_without_standard_output_at_all(start_daemon: StartDaemon, models: ModelMaker) -> None:
    daemon = start_daemon(
        "--model", str(models.copied(4)), ready=False, stdout=None, preexec_fn=lambda: os.close(1)
    )
    while not daemon.socket.with_name("sigd.sock.admin").exists():
        assert daemon.process.poll() is None, daemon.said()
    assert daemon.stop(signal.SIGTERM) == 0


def test_status_for_people(start_daemon: StartDaemon, models: ModelMaker) -> None:
    daemon = start_daemon("--model", str(models.copied(4)))
    empty = sigd("status", "--socket", daemon.socket)
    assert empty.returncode == 0, empty.stderr
    assert "answers: none yet" in empty.stdout
    with daemon.connect() as client:
        client.request(ROW)
        client.send_many([ROW] * 9)
        client.receive_many(9)
        full = sigd("status", "--socket", daemon.socket)
    for words in (
        f"pid {daemon.process.pid}",
        "1 open, 1 accepted",
        "answers: OK 10",
        "p99.9",
        "total",
        "(4 -> 4)",
    ):
        assert words in full.stdout


def test_status_tells_reloads_that_went_well_and_that_did_not(
    start_daemon: StartDaemon, models: ModelMaker, tmp_path: Path
) -> None:
    daemon = start_daemon("--model", str(models.copied(4)))
    assert "reloads" not in sigd("status", "--socket", daemon.socket).stdout
    assert sigd("reload", "--socket", daemon.socket).returncode == 0
    assert sigd("reload", "--socket", daemon.socket, "--model", tmp_path / "none.onnx").returncode == 1
    assert "reloads: 1 served, 1 refused" in sigd("status", "--socket", daemon.socket).stdout
    (model,) = daemon.status().models
    assert (model.reloads, model.reloads_refused) == (1, 1)
    top = sigd("top", "--socket", daemon.socket, "--count", "1", "--json")
    (model,) = json.loads(top.stdout)["models"]
    assert (model["reloads"], model["reloads_refused"]) == (1, 1)


def test_status_for_programs(start_daemon: StartDaemon, models: ModelMaker) -> None:
    daemon = start_daemon("--model", str(models.copied(4)))
    with daemon.connect(client_name="engine-1") as client:
        client.send_many([ROW] * 10)
        client.receive_many(10)
        done = sigd("status", "--admin-socket", f"{daemon.socket}.admin", "--json")
    said = json.loads(done.stdout)
    assert said["clients"] == ["engine-1"]
    (model,) = said["models"]
    assert model["answers"]["OK"] == 10
    assert model["total"]["count"] == 10
    assert 0 < model["total"]["p50_us"] <= model["total"]["p99.99_us"] <= model["total"]["max_us"]
    assert sum(int(rows) * count for rows, count in model["batches_by_rows"].items()) == 10


def test_status_where_no_daemon_is(tmp_path: Path) -> None:
    done = sigd("status", "--socket", tmp_path / "s")
    assert done.returncode == 3
    assert "start one with: sigd serve" in done.stderr


def test_the_log_for_programs(start_daemon: StartDaemon, models: ModelMaker) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    daemon = start_daemon(
        "--model", str(models.copied(4)), "--log-format", "json", ready=False, stdout=writing
    )
    os.close(writing)
    while "standard output" not in daemon.said():
        assert daemon.process.poll() is None, daemon.said()
    lines = [json.loads(line) for line in daemon.said().splitlines()]
    said = next(line for line in lines if "standard output" in line["message"])
    assert (said["level"], said["logger"]) == ("warning", "sigd.daemon.service")


def test_a_format_of_the_log_that_there_is_not(tmp_path: Path) -> None:
    config = tmp_path / "sigd.toml"
    config.write_text('log_format = "syslog"')
    done = sigd("serve", "--config", config)
    assert done.returncode == 2
    assert "syslog" in done.stderr


def test_the_journal_is_told_that_an_error_is_one() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        status = os.fstat(theirs.fileno())
        environ = {**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        command = [sys.executable, "-P", "-m", "sigd.daemon", "serve", "--model", "none.onnx"]
        assert (
            subprocess.run(command, stderr=theirs.fileno(), env=environ, check=False, timeout=60).returncode
            == 2
        )
        assert ours.recv(4096).startswith(b"<3>none.onnx: no such file")


@needs_lanes
def test_check_tries_lanes_and_says_what_makes_them_useless(models: ModelMaker, tmp_path: Path) -> None:
    core = str(max(os.sched_getaffinity(0)))
    place = ("--socket", tmp_path / "s.sock", "--lane-idle", "backoff", "--lane-cpu")
    good = sigd("serve", "--check", "--model", models.mlp(4, (8,), 2), "--backend", "native", *place, core)
    assert (good.returncode, good.stderr) == (0, "")
    alone = len(os.sched_getaffinity(0)) == 1
    assert ("warning: " in good.stdout) == alone
    shared = sigd("serve", "--check", "--cpu", core, "--model", models.copied(4), *place, core)
    assert f"warning: core {core} has a lane, and the loop runs there too" in shared.stdout
    useless = sigd("serve", "--check", "--model", models.copied(4), "--backend", "onnxruntime", *place, core)
    assert useless.returncode == 0
    assert "is served by the loop, not in a lane: it runs on onnxruntime" in useless.stdout
    assert "warning: no model is served in a lane, which has nothing to do" in useless.stdout
    recorded = sigd(
        *("serve", "--check", "--model", models.mlp(4, (8,), 2), "--backend", "native", *place, core),
        *("--record", tmp_path / "kept"),
    )
    assert "its answers are recorded or compared with a shadow's" in recorded.stdout


@needs_lanes
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--lane-cpu", "1023"], "lane_cpu 1023 is not one that this process may run on"),
        (["--lane-cpu", "1", "--cpu", "1", "--lane-idle", "spin"], "leaves the loop no time"),
        (["--lane-cpu", "1", "--no-shared-memory"], "for clients of shared memory"),
    ],
)
def test_check_refuses_lanes_that_cannot_start(
    models: ModelMaker, tmp_path: Path, arguments: list[str], said: str
) -> None:
    model = models.mlp(4, (8,), 2)
    done = sigd("serve", "--check", "--model", model, "--socket", tmp_path / "s.sock", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
