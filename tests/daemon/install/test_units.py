"""The unit files that are made for an installation, and what systemd itself says of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sigd.daemon.config.config import load_config
from sigd.daemon.errors import UsageError
from sigd.daemon.install.units import Target, files, hidden_part, read

ROOT = Path(__file__).resolve().parents[3]
EXPOSURE_MAX = 20
"""In tenths, as `systemd-analyze security --threshold=` takes it."""


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("there is no systemd-analyze: apt-get install systemd")
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)


def contents(target: Target) -> dict[str, str]:
    return {file.path.removeprefix("/etc/"): file.content for file in files(target)}


def settings(unit: str) -> list[str]:
    """What stands in a unit, without comments."""
    return [line for line in unit.splitlines() if line and not line.startswith("#")]


def test_what_is_written_where() -> None:
    assert list(contents(Target())) == [
        "sysusers.d/sigd.conf",
        "tmpfiles.d/sigd.conf",
        "systemd/system/sigd.service",
        "systemd/system/sigd.socket",
        "systemd/system/sigd-admin.socket",
        "sigd/sigd.toml",
    ]
    assert list(contents(Target(instance="lob", realtime_cpu=1, gpu=True, metrics=True))) == [
        "sysusers.d/sigd.conf",
        "tmpfiles.d/sigd.conf",
        "systemd/system/sigd@.service",
        "systemd/system/sigd@.socket",
        "systemd/system/sigd-admin@.socket",
        "systemd/system/sigd@lob.service.d/realtime.conf",
        "systemd/system/sigd@lob.service.d/gpu.conf",
        "systemd/system/sigd@lob.service.d/metrics.conf",
        "sigd/lob.toml",
    ]


def test_as_they_stand_they_are_those_of_the_default_place() -> None:
    """An operator who copies the files by hand gets the same."""
    for file in files(Target(gpu=True, metrics=True)):
        assert file.content == (ROOT / "systemd" / file.source).read_text(), file.source


def test_what_depends_on_the_installation() -> None:
    target = Target("/srv/venv/bin/sigd", "trader", "desk", "lob", realtime_cpu=7)
    made = contents(target)
    service = made["systemd/system/sigd@.service"]
    assert "ExecStart=/srv/venv/bin/sigd serve --config /etc/sigd/%i.toml" in service
    assert "ExecReload=/srv/venv/bin/sigd reload --socket /run/sigd/%i.sock" in service
    assert "User=trader\nGroup=desk\n" in service
    for name in ("sigd@.socket", "sigd-admin@.socket"):
        assert "SocketUser=trader\nSocketGroup=desk\n" in made[f"systemd/system/{name}"]
    assert made["sysusers.d/sigd.conf"].splitlines()[-1].startswith("u trader -")
    assert made["tmpfiles.d/sigd.conf"].splitlines()[-1] == "d /run/sigd 0750 root desk -"
    assert "CPUAffinity=7" in settings(made["systemd/system/sigd@lob.service.d/realtime.conf"])
    assert "/etc/sigd/lob.toml" in made["sigd/lob.toml"]
    assert not [path for path, text in made.items() if "/opt/sigd" in text]


@pytest.mark.parametrize("name", ["sigd.service", "sigd.socket", "sigd-admin.socket"])
def test_the_units_of_several_daemons_are_those_of_one(name: str) -> None:
    """But for the names: what one has learnt the others have too."""
    stem, suffix = name.split(".")
    of_one, of_several = settings(read(name)), settings(read(f"{stem}@.{suffix}"))
    assert of_several != of_one
    renamed = [
        re.sub(r"sigd(-admin)?@%i", r"sigd\1", line)
        .replace("/%i.", "/sigd.")
        .replace("=sigd %i,", "=sigd,")
        .replace("/%i", "")
        for line in of_several
    ]
    assert renamed == of_one


@pytest.mark.parametrize("unit", ["sigd.service", "sigd@.service"])
def test_child_process_may_run_out_of_memory_and_not_take_the_daemon_along(unit: str) -> None:
    assert "OOMPolicy=continue" in settings(read(unit))


@pytest.mark.parametrize("unit", ["sigd.service", "sigd@.service"])
def test_what_is_recorded_and_not_stored_outlives_the_daemon(unit: str) -> None:
    """In a directory that RemoveIPC= does not know, and that systemd leaves when the daemon ends."""
    said = settings(read(unit))
    assert "RemoveIPC=yes" in said
    (place,) = (line for line in said if line.startswith("RuntimeDirectory="))
    assert place.removeprefix("RuntimeDirectory=").startswith("sigd-memory")
    assert {"RuntimeDirectoryMode=0700", "RuntimeDirectoryPreserve=yes"} < set(said)


def test_the_example_configuration_is_a_good_one_and_so_is_all_that_it_leaves_out(tmp_path: Path) -> None:
    text = read("sigd.toml")
    file = tmp_path / "sigd.toml"
    file.write_text(text)
    left_out = load_config(file, {})
    given = re.sub(r"^# ([a-z_]+ = )", r"\1", text, flags=re.MULTILINE)
    file.write_text(
        "\n".join(
            line for line in given.splitlines() if not line.startswith(("model", "cpu", "shadow", "recorder"))
        )
    )
    assert load_config(file, {}) == left_out, "what it shows are the defaults"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"command": "sigd"}, "cannot start it from there"),
        ({"command": "/opt/my sigd/bin/sigd"}, "no blanks"),
        ({"command": "/opt/100%/sigd"}, "no blanks"),
        ({"user": "Trader Joe"}, "no name of a system user"),
        ({"user": "a\nUser=root"}, "no name of a system user"),
        ({"instance": "a/b"}, "no name of an instance"),
        ({"instance": "sigd"}, "no name of an instance"),
        ({"instance": "-x"}, "no name of an instance"),
    ],
)
def test_what_no_unit_can_hold_is_refused(wrong: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Target(**wrong)  # type: ignore[arg-type]


def test_what_a_hardened_service_cannot_reach(tmp_path: Path) -> None:
    assert hidden_part([Path("/usr/bin/env"), Path("/opt")]) is None
    assert hidden_part([Path("/usr/bin/env"), Path("/home/joe/venv/bin/sigd")]) == Path(
        "/home/joe/venv/bin/sigd"
    )
    mine = tmp_path / "mine"
    mine.mkdir(mode=0o700)
    assert hidden_part([mine / "sigd"]) == mine / "sigd"


def installed(folder: Path, target: Target) -> Path:
    """The units of `target`, as systemd-analyze wants them, with a command that is there."""
    units = folder / "etc/systemd/system"
    for file in files(target):
        path = folder / file.path.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.content)
    return units


@pytest.mark.parametrize("instance", ["", "lob"])
@pytest.mark.parametrize(
    "dropins", [{}, {"realtime_cpu": 0, "gpu": True, "metrics": True}], ids=["plain", "dropins"]
)
def test_systemd_finds_nothing_wrong_with_them(
    tmp_path: Path, instance: str, dropins: dict[str, int]
) -> None:
    target = Target("/bin/true", instance=instance, **dropins)  # type: ignore[arg-type]
    units = installed(tmp_path, target)
    at = f"@{instance}" if instance else ""
    for file in units.glob("sigd*@.*"):
        (units / file.name.replace("@", at)).symlink_to(file.name)
    done = analyze("verify", *(str(units / name) for name in (target.service, *target.sockets)))
    said = [line for line in done.stderr.splitlines() if str(units) in line or "sigd" in line]
    assert (done.returncode, said) == (0, [])


@pytest.mark.parametrize(
    "dropins",
    [
        {},
        {"realtime_cpu": 0},
        {"gpu": True},
        {"metrics": True},
        {"realtime_cpu": 0, "gpu": True, "metrics": True},
    ],
    ids=["cpu", "realtime", "gpu", "metrics", "all"],
)
def test_its_exposure_is_low(tmp_path: Path, dropins: dict[str, int]) -> None:
    units = installed(tmp_path, Target("/bin/true", **dropins))  # type: ignore[arg-type]
    done = analyze(
        "security", "--offline=true", f"--threshold={EXPOSURE_MAX}", "--no-pager", str(units / "sigd.service")
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Overall exposure level" in done.stdout
