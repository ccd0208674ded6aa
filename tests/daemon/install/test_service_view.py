"""What an installed unit lets its daemon see, and `sigd serve --check` that checks with its eyes."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from sigd.daemon.errors import MissingDependency, UsageError
from sigd.daemon.install.install import install
from sigd.daemon.install.service_view import ServiceView, view_of
from sigd.daemon.install.units import Target, files


def installed(root: Path, target: Target) -> ServiceView:
    install(files(target), root, force=False, say=lambda _: None)
    name = target.instance or "sigd"
    view = view_of(Path(f"/etc/sigd/{name}.toml"), root)
    assert view is not None
    return view


def test_unit_as_it_is_installed(tmp_path: Path) -> None:
    assert installed(tmp_path, Target(user="trading")) == ServiceView(
        unit="sigd.service",
        command="/opt/sigd/bin/sigd",
        user="trading",
        hides_homes=True,
        hides_tmp=True,
        writable=(Path("/var/lib/sigd"), Path("/run/sigd-memory")),
        priority_max=0,
        memory=Path("/run/sigd-memory"),
        socket="/run/sigd/sigd.sock",
        admin_socket="/run/sigd/sigd.sock.admin",
    )


def test_instance_has_its_own_socket_and_its_own_part_of_the_state_directory(tmp_path: Path) -> None:
    view = installed(tmp_path, Target(instance="lob"))
    assert (view.unit, view.socket) == ("sigd@lob.service", "/run/sigd/lob.sock")
    assert view.writable == (Path("/var/lib/sigd/lob"), Path("/run/sigd-memory/lob"))
    view.refuse_read_only(Path("/var/lib/sigd/lob/recordings"))
    with pytest.raises(UsageError, match=r"sigd@lob\.service may write to /var/lib/sigd/lob, "):
        view.refuse_read_only(Path("/var/lib/sigd/recordings"))


def test_example_configuration_of_an_instance_records_where_it_may(tmp_path: Path) -> None:
    view = installed(tmp_path, Target(instance="lob"))
    text = (tmp_path / "etc/sigd/lob.toml").read_text()
    directory = text.split('recorder = {directory = "')[1].split('"')[0]
    view.refuse_read_only(Path(directory))
    assert "sigd@lob.socket and sigd-admin@lob.socket" in text


def test_drop_ins_count_in_their_order_and_an_empty_line_takes_back(tmp_path: Path) -> None:
    installed(tmp_path, Target())
    folder = tmp_path / "etc/systemd/system/sigd.service.d"
    folder.mkdir()
    (folder / "20-b.conf").write_text("[Service]\nReadWritePaths=\nReadWritePaths=/srv/b\nProtectHome=no\n")
    (folder / "10-a.conf").write_text("[Service]\nReadWritePaths=/srv/a\n# User=nobody\n")
    view = view_of(Path("/etc/sigd/sigd.toml"), tmp_path)
    assert view is not None
    assert view.writable is not None
    assert Path("/srv/b") in view.writable
    assert Path("/srv/a") not in view.writable
    assert (view.user, view.hides_homes, view.hides_tmp) == ("sigd", False, True)
    view.refuse_hidden("model", Path("/home/me/m.onnx"))


@pytest.mark.parametrize(
    ("lines", "priority_max"),
    [
        ("", 0),
        ("LimitRTPRIO=5", 0),
        ("RestrictRealtime=no", 0),
        ("LimitRTPRIO=5\nRestrictRealtime=no", 5),
        ("LimitRTPRIO=7:9\nRestrictRealtime=false", 7),
        ("LimitRTPRIO=infinity\nRestrictRealtime=no", 99),
    ],
)
def test_real_time_priority_is_what_the_unit_allows(lines: str, priority_max: int, tmp_path: Path) -> None:
    installed(tmp_path, Target())
    folder = tmp_path / "etc/systemd/system/sigd.service.d"
    folder.mkdir()
    (folder / "lane.conf").write_text(f"[Service]\n{lines}\n")
    view = view_of(Path("/etc/sigd/sigd.toml"), tmp_path)
    assert view is not None
    assert view.priority_max == priority_max
    view.refuse_priority(priority_max)
    with pytest.raises(
        MissingDependency, match=r"sigd\.service may use real-time priorities up to \d+; allow"
    ):
        view.refuse_priority(priority_max + 1)


@pytest.mark.parametrize("path", ["/home/me/m.onnx", "/root/m.onnx", "/run/user/7/m.onnx", "/tmp/m.onnx"])
def test_what_the_unit_hides_is_refused(path: str, tmp_path: Path) -> None:
    view = installed(tmp_path, Target())
    with pytest.raises(UsageError, match=rf"{path}: sigd\.service does not see this model"):
        view.refuse_hidden("model", Path(path))
    view.refuse_hidden("model", Path("/srv/m.onnx"))


def test_configuration_of_no_service_is_checked_as_it_is(tmp_path: Path) -> None:
    installed(tmp_path, Target())
    for file in ("/etc/sigd/other.toml", "/home/me/sigd.toml", "/etc/sigd/sigd.conf"):
        assert view_of(Path(file), tmp_path) is None


ME = pwd.getpwuid(os.geteuid()).pw_name
BELOW = """
import os, sys
from pathlib import Path
from sigd.daemon import cli
from sigd.daemon.install import service_view, units
real, root = service_view.view_of, Path(sys.argv[1])
service_view.view_of = lambda file: real(Path("/etc/sigd", Path(file).name), root)
units.hidden_part = lambda _: None
sys.argv = ["sigd", "serve", "--check", *sys.argv[2:]]
cli.main()
"""


def check(root: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`sigd serve --check` with the units below `root`."""
    return subprocess.run(
        [sys.executable, "-P", "-c", BELOW, str(root), "--config", str(root / "etc/sigd" / name), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_check_names_the_socket_of_the_instance(tmp_path: Path) -> None:
    installed(tmp_path, Target(user=ME, instance="lob"))
    done = check(tmp_path, "lob.toml", "--allow-insecure-files")
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("it would serve at /run/sigd/lob.sock")
    (tmp_path / "etc/sigd/lob.toml").write_text('socket = "/run/sigd/other.sock"\n')
    done = check(tmp_path, "lob.toml", "--allow-insecure-files")
    assert done.returncode == 2
    assert "systemd listens for sigd@lob.service on /run/sigd/lob.sock" in done.stderr


def test_check_refuses_what_the_service_could_not_open(tmp_path: Path) -> None:
    installed(tmp_path, Target(user=ME))
    configuration = tmp_path / "etc/sigd/sigd.toml"
    configuration.write_text('model = "/home/me/model.onnx"\n')
    done = check(tmp_path, "sigd.toml", "--allow-insecure-files")
    assert done.returncode == 2
    assert "/home/me/model.onnx: sigd.service does not see this model (ProtectHome=" in done.stderr
    configuration.write_text('[recorder]\ndirectory = "/srv/recordings"\n')
    done = check(tmp_path, "sigd.toml", "--allow-insecure-files")
    assert done.returncode == 2
    assert "ReadWritePaths=/srv/recordings" in done.stderr
    configuration.write_text("lane_cpu = [0]\nlane_priority = 2\n")
    done = check(tmp_path, "sigd.toml", "--allow-insecure-files")
    assert done.returncode == 3
    assert "LimitRTPRIO=2 and RestrictRealtime=no" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become the service's user")
def test_check_by_root_fails_where_the_services_user_may_not_read(tmp_path: Path) -> None:
    installed(tmp_path, Target(user="nobody", group="nogroup"))
    for folder in (tmp_path, *list(tmp_path.parents)[:-2]):
        folder.chmod(folder.stat().st_mode | 0o755)
    configuration = tmp_path / "etc/sigd/sigd.toml"
    configuration.chmod(0o600)
    done = check(tmp_path, "sigd.toml", "--allow-insecure-files")
    assert done.returncode == 2, done.stdout
    assert "the configuration cannot be read: Permission denied" in done.stderr
