"""Several models in one daemon: who serves whom, and that none waits for another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sigd.daemon.errors import UsageError
from sigd.daemon.serving.models import ServedModels
from sigd.wire.status import Status

if TYPE_CHECKING:
    from tests.daemon.conftest import Rig


def rigs(make_rig: type[Rig], *names: str, synchronous: bool = True) -> list[Rig]:
    made = [make_rig(synchronous=synchronous) for _ in names]
    for rig, name in zip(made, names, strict=True):
        rig.batcher.name = name
    return made


def test_the_first_is_the_default_and_the_others_go_by_their_names(make_rig: type[Rig]) -> None:
    first, second = rigs(make_rig, "a", "b")
    served = ServedModels([first.batcher, second.batcher])
    assert served.find("") is served.find("a") is first.batcher
    assert served.find("b") is second.batcher
    assert served.find("c") is None
    assert list(served) == [first.batcher, second.batcher]


def test_two_of_one_name_are_refused(make_rig: type[Rig]) -> None:
    with pytest.raises(UsageError, match="two models have one name among m, m"):
        ServedModels([rig.batcher for rig in rigs(make_rig, "m", "m")])


def poll(served: ServedModels) -> bool:
    """A tick."""
    return any([each() for each in served.polls])  # noqa: C419  each has its turn


def test_each_model_has_its_turn_whatever_the_others_do(make_rig: type[Rig]) -> None:
    first, second = rigs(make_rig, "a", "b", synchronous=False)
    served = ServedModels([first.batcher, second.batcher])
    clients = [rig.connect() for rig in (first, second)]
    for client in clients:
        client.say(first.request(1, 5))
    assert served.pending_rows == 2
    assert poll(served)
    second.backend.finished = True
    assert poll(served), "the first is not done"
    assert clients[1].statuses() == [(1, Status.OK)]
    assert clients[0].answers() == []
    first.backend.finished = True
    poll(served)
    assert clients[0].statuses() == [(1, Status.OK)]
    assert served.pending_rows == 0
    assert not poll(served)


def test_models_last_batch_is_the_last_of_any_and_all_close_their_fast_path(make_rig: type[Rig]) -> None:
    first, second = rigs(make_rig, "a", "b")
    served = ServedModels([first.batcher, second.batcher])
    for rig in (first, second):
        rig.connect().say(rig.request(1))
    first.clock.now_ns += 100
    poll(served)
    assert served.last_batch_ns() == first.batcher.last_batch_ns > second.batcher.last_batch_ns
    assert first.batcher.fast_path_owner is not None
    assert second.batcher.fast_path_owner is not None
    served.close_fast_path()
    assert first.batcher.fast_path_owner is second.batcher.fast_path_owner is None
