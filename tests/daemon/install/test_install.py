"""`sigd install-service`: what it writes, and that no change of anybody's is ever lost."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sigd.daemon.commands import install_service as command
from sigd.daemon.errors import DaemonError, MissingDependency, UsageError
from sigd.daemon.install.install import Found, install, look, marked, of_others, uninstall
from sigd.daemon.install.units import File, Target, files

TARGET = Target()


class Root:
    """A file system of its own, and what was said."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.said: list[str] = []

    def install(self, target: Target = TARGET, *, force: bool = False) -> None:
        install(files(target), self.path, force=force, say=self.said.append)

    def uninstall(self, target: Target = TARGET, *, force: bool = False) -> None:
        uninstall(files(target), self.path, force=force, say=self.said.append)

    def there(self) -> dict[str, str]:
        found = [path for path in self.path.rglob("*") if not path.is_dir()]
        return {str(path.relative_to(self.path)): path.read_text() for path in found}


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path)


def test_each_file_says_that_it_is_as_it_was_written(root: Root) -> None:
    root.install()
    there = root.there()
    assert len(there) == 6
    for file in files(TARGET):
        text = there[file.path.lstrip("/")]
        assert text == marked(file.content)
        assert text.startswith("# written by sigd install-service ")
        assert text.endswith(file.content)
    assert all(line.startswith("wrote ") for line in root.said)


def test_every_user_may_read_them(root: Root) -> None:
    umask = os.umask(0o077)
    try:
        root.install()
    finally:
        os.umask(umask)
    for name in root.there():
        assert stat.S_IMODE((root.path / name).stat().st_mode) == 0o644


def test_once_more_changes_nothing(root: Root) -> None:
    root.install()
    before = {name: (root.path / name).stat().st_ino for name in root.there()}
    root.said.clear()
    root.install()
    assert {name: (root.path / name).stat().st_ino for name in root.there()} == before
    assert all(line.startswith("unchanged ") for line in root.said)


def test_another_version_or_option_replaces_untouched_files(root: Root) -> None:
    root.install()
    root.said.clear()
    root.install(Target("/srv/sigd/bin/sigd"))
    service = root.there()["etc/systemd/system/sigd.service"]
    assert "ExecStart=/srv/sigd/bin/sigd serve" in service
    assert sorted(line.split()[0] for line in root.said) == ["replaced", *["unchanged"] * 5]


def test_changed_unit_stops_it_before_anything_is_written(root: Root) -> None:
    root.install()
    unit = root.path / "etc/systemd/system/sigd.service"
    unit.write_text(unit.read_text().replace("WatchdogSec=5", "WatchdogSec=50"))
    before = root.there()
    with pytest.raises(UsageError, match=r"changed since it was written.*/etc/systemd/system/sigd\.service"):
        root.install(Target("/srv/sigd/bin/sigd"))
    with pytest.raises(UsageError, match="Nothing was done"):
        root.uninstall()
    assert root.there() == before
    root.install(force=True)
    assert "WatchdogSec=5\n" in unit.read_text()
    root.uninstall(force=True)
    assert root.there() == {}


def test_a_unit_that_came_from_elsewhere_is_not_ours(root: Root) -> None:
    unit = root.path / "etc/systemd/system/sigd.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\nExecStart=/bin/true\n")
    with pytest.raises(UsageError, match="not written by sigd"):
        root.install()
    assert list(root.there()) == ["etc/systemd/system/sigd.service"]


def test_the_configuration_is_the_users_even_by_force(root: Root) -> None:
    root.install()
    configuration = root.path / "etc/sigd/sigd.toml"
    configuration.write_text("cpu = 3\n")
    root.install(force=True)
    assert configuration.read_text() == "cpu = 3\n"
    root.uninstall(force=True)
    assert root.there() == {"etc/sigd/sigd.toml": "cpu = 3\n"}
    assert [line for line in root.said if line.startswith("kept ")] == [
        f"kept       {configuration} (yours)"
    ] * 2


def test_untouched_example_goes_too(root: Root) -> None:
    root.install(Target(gpu=True, realtime_cpu=1))
    root.uninstall(Target(gpu=True, realtime_cpu=1))
    assert root.there() == {}
    assert not (root.path / "etc/systemd/system/sigd.service.d").exists()


def test_a_drop_in_of_the_operators_own_stays(root: Root) -> None:
    root.install(Target(gpu=True))
    own = root.path / "etc/systemd/system/sigd.service.d/override.conf"
    own.write_text("[Service]\nNice=5\n")
    root.uninstall(Target(gpu=True))
    assert list(root.there()) == ["etc/systemd/system/sigd.service.d/override.conf"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (marked("a\n"), Found.SAME),
        (marked("b\n"), Found.WRITTEN),
        (marked("b\n") + "c\n", Found.CHANGED),
        (marked("a\n").replace("0.", "9.", 1), Found.WRITTEN),
        ("a\n", Found.CHANGED),
        ("", Found.CHANGED),
        ("# written by sigd install-service 1 sha256=\n", Found.CHANGED),
    ],
)
def test_what_stands_there(tmp_path: Path, text: str, found: Found) -> None:
    path = tmp_path / "file"
    assert look(path, "a\n") is Found.NOTHING
    path.write_text(text)
    assert look(path, "a\n") is found


def test_bytes_that_are_no_text_are_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\xff\xfe")
    assert look(tmp_path / "file", "a\n") is Found.CHANGED


def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(MissingDependency, match="cannot be read: Is a directory"):
        look(tmp_path / "file", "a\n")


def test_a_masked_unit_stays_masked(root: Root) -> None:
    unit = root.path / "etc/systemd/system/sigd.service"
    unit.parent.mkdir(parents=True)
    unit.symlink_to("/dev/null")
    with pytest.raises(UsageError, match="not written by sigd"):
        root.install()


def test_where_it_cannot_be_written(root: Root) -> None:
    (root.path / "etc").write_text("no directory")
    with pytest.raises(MissingDependency, match="cannot be written: "):
        install([File("/etc/x/y", "text", "y")], root.path, force=False, say=root.said.append)


@pytest.mark.parametrize(
    ("there", "of", "others"),
    [
        ([], Target(), False),
        ([Target()], Target(), False),
        ([Target(), Target(instance="lob")], Target(), True),
        ([Target(), Target(instance="lob")], Target(instance="lob"), True),
        ([Target(instance="lob")], Target(instance="lob"), False),
        ([Target(instance="lob"), Target(instance="fx")], Target(instance="lob"), True),
    ],
)
def test_whether_others_need_the_shared_files(
    root: Root, there: list[Target], of: Target, others: bool
) -> None:
    for target in there:
        root.install(target)
    assert of_others(of, root.path) is others


# -- the command -----------------------------------------------------------------------------------------


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command.install_service, arguments)


def test_a_dry_run_shows_every_file_and_writes_none(tmp_path: Path) -> None:
    done = run("--dry-run", "--prefix", str(tmp_path), "--realtime", "1", "--gpu")
    assert done.exit_code == 0, done.output
    shown = [line for line in done.output.splitlines() if line.startswith("==> ")]
    assert len(shown) >= 8
    assert "CPUAffinity=1" in done.output
    assert "systemctl start sigd.service" in done.output
    assert list(tmp_path.iterdir()) == []


def test_json_tells_what_becomes_of_each_file(tmp_path: Path) -> None:
    asked = ("--prefix", str(tmp_path), "--json")

    def actions(*options: str) -> dict[str, str]:
        done = run(*asked, *options)
        assert done.exit_code == 0, done.output
        return {Path(file["path"]).name: file["action"] for file in json.loads(done.stdout)["files"]}

    assert set(actions("--dry-run").values()) == {"wrote"}
    assert list(tmp_path.iterdir()) == []
    assert set(actions().values()) == {"wrote"}
    assert set(actions("--dry-run").values()) == {"unchanged"}
    (tmp_path / "etc/sigd/sigd.toml").write_text("# mine\n")
    assert actions("--metrics")["sigd.toml"] == "kept"


def test_below_a_prefix_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "run_command", lambda *_: pytest.fail("a command of this machine's"))
    done = run("--prefix", str(tmp_path))
    assert done.exit_code == 0, done.output
    assert (tmp_path / "etc/systemd/system/sigd.service").exists()
    assert "next" not in done.output
    done = run("--prefix", str(tmp_path), "--uninstall")
    assert done.exit_code == 0, done.output
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []


def test_an_instance_leaves_what_the_others_need(tmp_path: Path) -> None:
    for arguments in ((), ("--instance", "lob"), ("--instance", "fx")):
        assert run("--prefix", str(tmp_path), *arguments).exit_code == 0
    assert run("--prefix", str(tmp_path), "--uninstall", "--instance", "lob").exit_code == 0
    assert not (tmp_path / "etc/sigd/lob.toml").exists()
    for name in ("sigd@.service", "sigd.service", "sigd@.socket"):
        assert (tmp_path / "etc/systemd/system" / name).exists()


@pytest.mark.parametrize("first", [(), ("--instance", "lob")])
@pytest.mark.parametrize("force", [(), ("--force",)])
def test_another_daemon_for_another_user_would_break_the_first(
    tmp_path: Path, first: tuple[str, ...], force: tuple[str, ...]
) -> None:
    below = ("--prefix", str(tmp_path))
    assert run(*below, *first, "--user", "trader").exit_code == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = run(*below, "--instance", "fx", "--user", "joe", *force)
    assert isinstance(done.exception, UsageError)
    assert "run for trader" in str(done.exception)
    assert "one for joe would take those away from them" in str(done.exception)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert run(*below, "--instance", "fx", "--user", "trader", *force).exit_code == 0


def test_a_daemon_that_is_alone_may_change_its_user(tmp_path: Path) -> None:
    for user in ("trader", "joe"):
        assert run("--prefix", str(tmp_path), "--instance", "lob", "--user", user).exit_code == 0
    assert "User=joe" in (tmp_path / "etc/systemd/system/sigd@.service").read_text()


def test_enabling_runs_what_would_have_been_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(command, "run_command", lambda words: ran.append(" ".join(words)))
    monkeypatch.setattr(command, "install", lambda *_, **__: None)
    monkeypatch.setattr(command, "check_reach", lambda *_, **__: None)
    monkeypatch.setattr(command, "is_active", lambda _: False)
    done = run("--enable")
    assert done.exit_code == 0
    assert "RUNNING" not in done.output
    advised = run()
    assert advised.exit_code == 0
    assert ran == [
        "systemd-sysusers /etc/sysusers.d/sigd.conf",
        "systemd-tmpfiles --create /etc/tmpfiles.d/sigd.conf",
        "systemctl daemon-reload",
        "systemctl enable sigd.service",
        "systemctl start sigd.service",
    ]
    assert [
        line.split(maxsplit=1)[1] for line in advised.output.splitlines() if line.startswith("next ")
    ] == ran


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--prefix", "/tmp/x", "--enable"), "without --prefix"),
        (("--uninstall", "--enable"), "not both"),
        (("--instance", "a b"), "no name of an instance"),
        (("--user", "Joe"), "no name of a system user"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], said: str) -> None:
    done = run(*arguments)
    assert isinstance(done.exception, UsageError)
    assert said in str(done.exception)


def test_installation_in_a_home_is_refused_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(command, "own_command", lambda: "/home/joe/venv/bin/sigd")
    monkeypatch.setattr(command, "install", lambda *_, **__: pytest.fail("written"))
    done = run()
    assert isinstance(done.exception, MissingDependency)
    assert "python3 -m venv /opt/sigd" in str(done.exception)


def test_a_command_that_fails_is_told() -> None:
    with pytest.raises(MissingDependency, match="false ended with 1"):
        command.run_command(["false"])
    with pytest.raises(DaemonError, match="is this a systemd machine"):
        command.run_command(["no-such-command-at-all"])


def test_enabling_a_running_daemon_says_that_it_goes_on_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("run_command", "install", "check_reach"):
        monkeypatch.setattr(command, name, lambda *_, **__: None)
    monkeypatch.setattr(command, "is_active", lambda unit: unit == "sigd@lob.service")
    done = run("--enable", "--instance", "lob")
    assert done.exit_code == 0
    assert "RUNNING    sigd@lob.service was running already" in done.output
    assert "systemctl restart sigd@lob.service takes up the new ones" in done.output
    assert "systemctl restart sigd@lob.socket" in done.output
