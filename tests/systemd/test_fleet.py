"""Three hosts under the Ansible role: installed, upgraded, rolled out to, with engines that ask them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.conftest import ModelMaker
from tests.systemd.fleet import (
    PLAYBOOK_S,
    RELEASES,
    UNIT,
    WHEELS,
    Account,
    Fleet,
    changes_of,
    finish,
    served_by,
    started_accounts,
)
from tests.systemd.machine import Machine
from tests.systemd.prepare import download_wheels

pytestmark = pytest.mark.systemd

ALL_AT_ONCE = ("--extra-vars", '{"sigd_waves": [3]}')
ONE_BY_ONE = ("--extra-vars", '{"sigd_waves": [1, 1, 1]}')
NAMES = ("inference-1", "inference-2", "inference-3")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> ModelMaker:
    """Makes models."""
    return ModelMaker(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def doubled(models: ModelMaker) -> Path:
    """The model of the inventory "served": the features times 2."""
    return models.scaled(2.0)


@pytest.fixture(scope="module")
def bare(root: Path, wheel: Path, doubled: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Booted hosts that have nothing of sigd, and an inventory "served"."""
    wheels = download_wheels(root)
    with ExitStack() as running:
        machines = {
            name: running.enter_context(
                Machine(root, tmp_path_factory.mktemp(name), f"--bind-ro={wheels}:{WHEELS}")
            )
            for name in NAMES
        }
        fleet = Fleet(machines, tmp_path_factory.mktemp("fleet"), wheel)
        fleet.inventory("served", doubled)
        yield fleet


@pytest.fixture(scope="module")
def first(bare: Fleet) -> Fleet:
    """The first host is installed."""
    _demand_success(bare.play("site", bare.path("served"), "--limit", NAMES[0]))
    return bare


@pytest.fixture(scope="module")
def fleet(first: Fleet) -> Fleet:
    """All hosts are."""
    installed, *others = (machine.here / RELEASES for machine in first.machines.values())
    for other in others:
        # pip would take as long again on each; the role finds the release complete.
        shutil.copytree(installed, other, symlinks=True)
    _demand_success(first.play("site", first.path("served"), *ALL_AT_ONCE))
    return first


@pytest.fixture
def accounts(fleet: Fleet) -> Iterator[dict[str, Account]]:
    """An engine on each host."""
    started = started_accounts(list(fleet.machines.values()))
    yield dict(zip(fleet.machines, started, strict=True))
    for account in started:
        account.stop()


def test_check_of_a_bare_host_changes_nothing(bare: Fleet) -> None:
    machine = bare.machines[NAMES[0]]
    code, said = bare.play("site", bare.path("served"), "--check", "--limit", NAMES[0])
    assert code == 0, said
    assert changes_of(said)[NAMES[0]] > 0
    for place in (RELEASES, "etc/sigd", "srv/sigd", "run/sigd-fleet.lock"):
        assert not (machine.here / place).exists(), place


def test_first_host_serves_what_the_inventory_names(first: Fleet) -> None:
    machine = first.machines[NAMES[0]]
    assert served_by(machine) == first.sha256("served")
    assert machine.show(UNIT, "ActiveState") == "active"
    assert machine.said("systemctl", "is-enabled", UNIT) == "enabled"
    assert "engine" in machine.said("getent", "group", "sigd")


def test_second_run_changes_nothing(fleet: Fleet) -> None:
    pids = _pids(fleet)
    code, said = fleet.play("site", fleet.path("served"), *ALL_AT_ONCE)
    assert (code, changes_of(said)) == (0, dict.fromkeys(NAMES, 0)), said
    assert _pids(fleet) == pids


def test_check_tells_what_would_change(fleet: Fleet, doubled: Path) -> None:
    pids = _pids(fleet)
    changed = fleet.inventory("changed", doubled, config='idle = "backoff"\n')
    code, said = fleet.play("site", changed, "--check", "--diff", "--limit", NAMES[0])
    assert (code, changes_of(said)) == (0, {NAMES[0]: 1}), said
    assert '+idle = "backoff"' in said
    assert "backoff" not in (fleet.machines[NAMES[0]].here / "etc/sigd/lob.toml").read_text()
    assert _pids(fleet) == pids


def test_red_upgrade_stops_after_one_host_and_goes_back(
    fleet: Fleet, models: ModelMaker, accounts: dict[str, Account]
) -> None:
    """The same wheel with another lock is another release; no daemon answers within 1 ns."""
    first = fleet.machines[NAMES[0]]
    before = first.show(UNIT, "ExecStart").partition(" ;")[0]
    pids = _pids(fleet)
    red = fleet.inventory("red-upgrade", models.scaled(2.0), sigd_gate_p99_us=0.001, sigd_lock="other.lock")
    (fleet.folder / "other.lock").write_text((fleet.folder / "base.lock").read_text() + "# another\n")
    fleet.copy_release(first, "other.lock")
    code, said = fleet.play("site", red, *ONE_BY_ONE)
    assert code != 0
    assert "expected at most 0.0 us" in said
    assert "The host has again what it had before" in said
    assert first.show(UNIT, "ExecStart").partition(" ;")[0] == before
    assert _pids(fleet)[0] != pids[0]
    assert _pids(fleet)[1:] == pids[1:], "no other host was touched"
    _stop(accounts)
    for account in accounts.values():
        account.demand_nothing_lost()
    _demand_unlocked(fleet)


def test_red_canary_stops_after_one_host(
    fleet: Fleet, models: ModelMaker, accounts: dict[str, Account]
) -> None:
    """A model that decides otherwise never answers anyone."""
    code, said = fleet.play("rollout", fleet.inventory("red", models.scaled(-2.0)), *ONE_BY_ONE)
    assert code != 0
    assert "the shadow agrees on 0.000%" in said
    _stop(accounts)
    for account in accounts.values():
        account.demand_nothing_lost()
        assert account.factors == [2.0]
    assert fleet.served() == dict.fromkeys(NAMES, fleet.sha256("served"))
    assert "shadow" not in (fleet.machines[NAMES[0]].here / "etc/sigd/lob.toml").read_text()
    _demand_unlocked(fleet)


def test_good_rollout_reaches_all_and_keeps_a_second_operator_out(
    fleet: Fleet, models: ModelMaker, accounts: dict[str, Account]
) -> None:
    good = fleet.inventory("good", models.scaled(2.5), sigd_canary_s=10)
    other = fleet.inventory("other", models.scaled(2.25))
    first = fleet.start("rollout", good, *ONE_BY_ONE)
    lock = fleet.machines[NAMES[-1]].here / "run/sigd-fleet.lock"
    _wait_until(lock.exists)
    code, said = fleet.play("rollout", other, *ONE_BY_ONE)
    assert code != 0
    assert "another run holds /run/sigd-fleet.lock" in said
    assert set(changes_of(said).values()) == {0}
    code, said = finish(first)
    assert code == 0, said
    _stop(accounts)
    for account in accounts.values():
        account.demand_nothing_lost()
        assert account.factors == [2.0, 2.5], "no other model answered, not even for a moment"
    assert fleet.served() == dict.fromkeys(NAMES, fleet.sha256("good"))
    for machine in fleet.machines.values():
        machine.run("systemctl", "restart", UNIT)
    assert fleet.served() == dict.fromkeys(NAMES, fleet.sha256("good")), "the next start has it too"
    _demand_unlocked(fleet)


def test_vanished_host_stops_a_rollout_and_the_others_go_back(
    fleet: Fleet, models: ModelMaker, accounts: dict[str, Account]
) -> None:
    """The last test: its host does not come back."""
    before = fleet.served()
    new = fleet.inventory("vanishing", models.scaled(3.0), sigd_gate_s=5)
    playing = fleet.start("rollout", new, *ONE_BY_ONE)
    second = accounts[NAMES[1]]
    _wait_until(lambda: second.factors[-1:] == [3.0])
    second.stop()
    fleet.machines[NAMES[1]].vanish()
    code, said = finish(playing)
    assert code != 0
    assert "the host cannot be reached" in said
    _stop(accounts)
    for name in (NAMES[0], NAMES[2]):
        accounts[name].demand_nothing_lost()
    old = accounts[NAMES[2]].factors[0]
    assert accounts[NAMES[0]].factors == [old, 3.0, old], "it had changed, and went back"
    assert accounts[NAMES[2]].factors == [old], "it was never touched"
    del fleet.machines[NAMES[1]], before[NAMES[1]]
    assert fleet.served() == before
    _demand_unlocked(fleet)


def _pids(fleet: Fleet) -> list[str]:
    """The daemon of each host."""
    return [machine.show(UNIT, "MainPID") for machine in fleet.machines.values()]


def _demand_success(played: tuple[int, str]) -> None:
    code, said = played
    assert code == 0, said


def _demand_unlocked(fleet: Fleet) -> None:
    for name, machine in fleet.machines.items():
        assert not (machine.here / "run/sigd-fleet.lock").exists(), name
        left = {path.suffix for path in (machine.here / "etc/sigd").iterdir()}
        assert left == {".toml"}, name


def _stop(accounts: dict[str, Account]) -> None:
    for account in accounts.values():
        account.stop()


def _wait_until(happened: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PLAYBOOK_S
    while not happened():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
