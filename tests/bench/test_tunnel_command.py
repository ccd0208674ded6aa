"""The measurement of what a tunnel costs, with a real one."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from sigd.bench import loopback_ssh
from sigd.bench.commands.tunnel import main
from sigd.bench.errors import MissingDependency, PeerFailed
from sigd.bench.loopback_ssh import OwnSshd, OwnTunnel, find_programs
from sigd.bench.tunnel import WAYS


@pytest.fixture
def openssh() -> None:
    try:
        find_programs()
    except MissingDependency as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.usefixtures("openssh")
def test_every_way_is_measured_under_every_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sigd.bench.rig.HICCUP_SECONDS", 0.01)
    arguments = ["--duration", "0.2", "--rate", "200", "--client", "python"]
    done = CliRunner().invoke(main, [*arguments, "--html", str(tmp_path / "t.html")])
    # A busy machine may miss the rate; then the run says so.
    assert done.exit_code == int(" * " in done.output), done.output
    assert "the client is in Python: asked for" in done.output
    for way in WAYS:
        rows = re.findall(rf"{way}(?: \*)?((?: +[\d.,]+)+)", done.output)
        figures = [[float(word.replace(",", "")) for word in row.split()] for row in rows]
        assert len(figures) == 2, "one for each load"
        assert all(len(row) == 5 and row == sorted(row) and row[0] > 0 for row in figures)
    assert (tmp_path / "t.html").read_text().count("<svg") == 4, "two for each load"
    assert len(json.loads((tmp_path / "t.json").read_text())) == 6
    assert (tmp_path / "t-hgrm" / "closed-loop-ssh-N.hgrm").is_file()


def test_without_openssh_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loopback_ssh, "SBIN", ())
    monkeypatch.setenv("PATH", "/nonexistent")
    done = CliRunner().invoke(main, [])
    assert done.exit_code == 3
    assert (
        done.output == "sigd: a tunnel needs sshd, and there is none (Debian: apt install openssh-server)\n"
    )


@pytest.mark.usefixtures("openssh")
def test_an_sshd_that_does_not_start_says_why() -> None:
    with pytest.raises(PeerFailed, match="Bad configuration option: Nonsense"):
        OwnSshd(["Nonsense yes"])


@pytest.mark.usefixtures("openssh")
def test_a_tunnel_that_is_not_let_in_says_why(tmp_path: Path) -> None:
    with OwnSshd(["DenyUsers *"]) as sshd, pytest.raises(PeerFailed, match="Permission denied"):
        OwnTunnel(sshd, str(tmp_path / "none"))


@pytest.mark.usefixtures("openssh")
def test_nothing_is_left() -> None:
    with OwnSshd() as sshd:
        folder, pid = sshd.folder, sshd.pid
        with OwnTunnel(sshd, "/nonexistent") as tunnel:
            assert Path(tunnel.socket_path).is_socket()
    assert not folder.exists()
    assert not os.path.exists(f"/proc/{pid}")
