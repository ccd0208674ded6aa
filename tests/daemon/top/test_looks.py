"""When is looked, how often, and what a daemon that is away does to it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from sigd.daemon.admin.messages import Status
from sigd.daemon.commands import top
from sigd.daemon.errors import MissingDependency
from sigd.daemon.top.interval import Interval
from sigd.daemon.top.keys import Keys

if TYPE_CHECKING:
    from tests.daemon.top.conftest import MakeStatus

PATH = Path("/s.admin")


class FakeKeys:
    """No key is pressed before the given look."""

    def __init__(self, leaves_at: int = 1000) -> None:
        self.waits = 0
        self._leaves_at = leaves_at

    def leave_within(self, until_s: float) -> bool:
        self.waits += 1
        return self.waits == self._leaves_at


def looks(
    monkeypatch: pytest.MonkeyPatch, answers: list[Status | None], count: int | None, keys: FakeKeys
) -> list[Interval | MissingDependency]:
    """What is told of these answers; None is silence."""
    first, *rest = answers
    assert first is not None
    coming = iter(rest)

    def ask(path: Path, timeout_s: float) -> Status:
        assert path == PATH
        answer = next(coming)
        if answer is None:
            raise MissingDependency("no daemon")
        return answer

    monkeypatch.setattr(top, "ask_status", ask)
    return list(top.looks(PATH, first, 0.5, count, cast(Keys, keys)))


def test_as_many_as_were_asked_for(monkeypatch: pytest.MonkeyPatch, make_status: MakeStatus) -> None:
    told = looks(monkeypatch, [make_status(seconds) for seconds in (0.0, 1.0, 3.0, 9.0)], 2, FakeKeys())
    assert [interval.seconds for interval in told if isinstance(interval, Interval)] == [1, 2]


def test_silence_lengthens_the_interval(monkeypatch: pytest.MonkeyPatch, make_status: MakeStatus) -> None:
    told = looks(monkeypatch, [make_status(), None, None, make_status(3.0)], 3, FakeKeys())
    assert [type(one) for one in told] == [MissingDependency, MissingDependency, Interval]
    assert isinstance(told[-1], Interval)
    assert told[-1].seconds == 3


def test_no_answer_to_the_last_look_is_an_error(
    monkeypatch: pytest.MonkeyPatch, make_status: MakeStatus
) -> None:
    with pytest.raises(MissingDependency, match="no daemon"):
        looks(monkeypatch, [make_status(), make_status(1.0), None], 2, FakeKeys())


def test_until_a_client_leaves(monkeypatch: pytest.MonkeyPatch, make_status: MakeStatus) -> None:
    keys = FakeKeys(leaves_at=3)
    told = looks(monkeypatch, [make_status(seconds) for seconds in (0.0, 1.0, 2.0, 3.0)], None, keys)
    assert len(told) == 2
