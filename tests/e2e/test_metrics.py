"""A scrape of a living daemon: on its admin socket, on loopback, and what promtool thinks of it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sigd.daemon.admin.metrics.families import FAMILIES
from sigd.daemon.admin.metrics.tables import shown_name
from sigd.wire.fields import REJECT
from sigd.wire.messages import Hello
from sigd.wire.status import Transport

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
    from tests.e2e.conftest import StartDaemon

ROW = [1.0, 2.0, 3.0, 4.0]


def value(text: str, series: str) -> float:
    found = re.search(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
    assert found, f"{series} is not told"
    return float(found[1])


def test_what_happened_is_told_on_both_ways(start_daemon: StartDaemon, models: ModelMaker) -> None:
    path = models.copied(4)
    daemon = start_daemon("--model", str(path), "--metrics-listen", "127.0.0.1:0")
    name = path.stem
    with daemon.connect() as client, socket.socket(socket.AF_UNIX) as other:
        for _ in range(10):
            client.request(ROW)
        client.send_many([ROW] * 5)
        client.receive_many(5)
        other.settimeout(60)
        other.connect(str(daemon.socket))
        other.sendall(Hello(transport=Transport.SHARED_MEMORY).encode())
        refused = other.recv(8)[2] == REJECT.template_id
        for tcp in (False, True):
            status, text = daemon.get("/metrics", tcp=tcp)
            assert status == 200
            assert value(text, f'sigd_requests_total{{model="{name}",status="OK"}}') == 15
            assert value(text, f'sigd_total_latency_us_count{{model="{name}"}}') == 15
            mine = f'sigd_connections_open{{transport="%s",uid="{os.getuid()}"}}'
            assert value(text, mine % "stream") == 1
            assert refused or value(text, mine % "shm") == 1
            assert value(text, 'sigd_rejects_total{code="TRANSPORT_UNAVAILABLE"}') == (1 if refused else 0)
            assert value(text, "sigd_connections_accepted_total") == 2
    assert daemon.get("/healthz", tcp=True) == (200, "ok\n")
    assert daemon.get("/healthz") == (200, "ok\n")
    assert daemon.get("/", tcp=True)[0] == 404


def test_what_is_recorded(start_daemon: StartDaemon, models: ModelMaker, tmp_path: Path) -> None:
    model = str(models.copied(4))
    daemon = start_daemon("--model", model, "--record", str(tmp_path / "kept"))
    with daemon.connect() as client:
        for _ in range(3):
            client.request(ROW)
        text = daemon.metrics()
    assert value(text, "sigd_recorder_requests_total") == 3
    assert value(text, "sigd_recorder_dropped_total") == 0
    assert value(text, "sigd_recorder_paused") == 0
    assert value(text, "sigd_recorder_unstored_bytes") >= 0
    assert "\nsigd_recorder" not in start_daemon("--model", model).metrics()


def test_on_loopback_nothing_else_is_answered(start_daemon: StartDaemon, models: ModelMaker) -> None:
    daemon = start_daemon("--model", str(models.copied(4)), "--metrics-listen", "[::1]:0")
    port = int(daemon.ready.rpartition(":")[2].removesuffix("/metrics\n"))
    with socket.create_connection(("::1", port), timeout=60) as connection:
        connection.sendall(b'{"op": "status"}\n\n')
        assert connection.recv(1000).startswith(b"HTTP/1.1 400 ")


def test_a_port_that_is_taken(start_daemon: StartDaemon, models: ModelMaker, tmp_path: Path) -> None:
    model = str(models.copied(4))
    daemon = start_daemon("--model", model, "--metrics-listen", "127.0.0.1:0")
    place = re.findall(r"metrics=http://(.*)/metrics", daemon.ready)[0]
    command = [sys.executable, "-P", "-m", "sigd.daemon", "serve", "--socket", str(tmp_path / "s")]
    done = subprocess.run(
        [*command, "--model", model, "--metrics-listen", place],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3
    assert "another process has it" in done.stderr
    assert list(tmp_path.glob("s*")) == [], "it left nothing behind"


def test_the_port_is_free_while_the_daemon_still_drains(
    start_daemon: StartDaemon, models: ModelMaker
) -> None:
    model = str(models.copied(4))
    daemon = start_daemon("--model", model, "--metrics-listen", "127.0.0.1:0")
    daemon.get("/metrics", tcp=True)
    place = re.findall(r"metrics=http://(.*)/metrics", daemon.ready)[0]
    with daemon.connect() as client:
        client.request(ROW)
        daemon.process.send_signal(signal.SIGTERM)
        start_daemon("--model", model, "--metrics-listen", place, folder=daemon.folder)
    assert daemon.process.wait(60) == 0


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool (Debian: apt install prometheus)"
)
def test_promtool_finds_nothing_wrong_but_the_unit_that_was_chosen(
    start_daemon: StartDaemon, models: ModelMaker
) -> None:
    daemon = start_daemon("--model", str(models.copied(4)))
    with daemon.connect() as client:
        client.request(ROW)
        text = daemon.metrics()
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=60, check=False
    )
    complaints = (checked.stdout + checked.stderr).splitlines()
    in_us = {shown_name(family) for family in FAMILIES if family.name.endswith("_us")}
    assert sorted(complaints) == sorted(
        f"{name} metric names should not contain abbreviated units" for name in in_us
    )
