"""Another model takes over between two batches: nothing is lost, nothing goes backwards, nothing of the old
is kept."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigd.daemon.serving.batcher import GENERATIONS_KEPT
from sigd.wire.messages import Hello, ModelInfo, Welcome
from sigd.wire.status import Status

if TYPE_CHECKING:
    from tests.daemon.conftest import FakeClient, Rig

pytestmark = pytest.mark.usefixtures("each_fast_path")


def said(client: FakeClient) -> list[tuple[int, int, float]]:
    """Sequence, generation and first output of each answer."""
    return [(answer.sequence, answer.model_generation, answer.outputs[0]) for answer in client.answers()]


def test_the_next_answer_is_from_the_new_model(rig: Rig) -> None:
    client = rig.connect()
    client.say(rig.request(1, 10))
    rig.run()
    new = rig.swap()
    client.say(rig.request(2, 10))
    rig.run()
    assert said(client) == [(1, 1, 10.0), (2, 2, 20.0)]
    assert rig.backend.closed
    assert rig.batcher.backend is new
    assert rig.batcher.generation == 2


def test_generations_of_the_past_are_described(rig: Rig) -> None:
    client = rig.connect()
    before = rig.batcher.spec.sha256
    rig.swap()
    client.say(b"".join(ModelInfo(generation).encode() for generation in (1, 2, 3, 0)))
    rig.run()
    now = ModelInfo(2, rig.batcher.spec.sha256, rig.batcher.name)
    assert client.received() == [ModelInfo(1, before, rig.batcher.name), now, ModelInfo(3), now]


def test_generations_kept_have_a_bound(rig: Rig) -> None:
    for _ in range(GENERATIONS_KEPT + 3):
        rig.swap()
    assert len(rig.batcher.digests) == GENERATIONS_KEPT
    assert rig.batcher.describe(0).known
    assert not rig.batcher.describe(1).known


def test_who_comes_later_is_welcomed_with_the_new_generation(rig: Rig) -> None:
    rig.connect()
    rig.swap()
    client = rig.client()
    client.say(Hello().encode())
    (welcome,) = client.received()
    assert isinstance(welcome, Welcome)
    assert welcome.model_generation == 2
    client.say(rig.request(1, 10))
    rig.run()
    assert said(client) == [(1, 2, 20.0)]


def test_what_waits_goes_to_the_new_model_and_nothing_is_lost(rig: Rig) -> None:
    client = rig.connect()
    client.say(rig.requests(range(1, 21)))
    rig.swap()
    rig.run()
    answers = client.answers()
    assert [answer.sequence for answer in answers] == list(range(1, 21))
    assert {answer.status for answer in answers} == {Status.OK}
    assert all(
        answer.outputs[0] == answer.sequence * (1, 2)[answer.model_generation - 1] for answer in answers
    )
    assert rig.batcher.pending_rows == 0


def test_a_batch_that_runs_on_a_device_is_finished_there_first(make_rig: type[Rig]) -> None:
    rig = make_rig(synchronous=False)
    client = rig.connect()
    client.say(rig.request(1, 10))
    rig.batcher.poll()
    new = rig.swap()
    client.say(rig.request(2, 10))
    rig.batcher.poll()
    assert [backend.closed for backend in (rig.backend, new)] == [False, False]
    rig.backend.finished = True
    rig.batcher.poll()
    assert said(client) == [(1, 1, 10.0)]
    assert [backend.closed for backend in (rig.backend, new)] == [True, False]
    rig.run()
    assert said(client) == [(2, 2, 20.0)]


def test_it_waits_for_a_batch_that_fails_too(make_rig: type[Rig]) -> None:
    rig = make_rig(synchronous=False)
    client = rig.connect()
    client.say(rig.request(1, 10))
    rig.batcher.poll()
    rig.swap()
    rig.backend.failure = RuntimeError("the device stumbled")
    client.say(rig.request(2, 10))
    rig.run()
    first, second = client.answers()
    assert (first.status, first.model_generation) == (Status.MODEL_ERROR, 1)
    assert (second.status, second.model_generation, second.outputs[0]) == (Status.OK, 2, 20.0)


def test_single_requests_take_the_fast_path_again_after_a_swap(make_rig: type[Rig]) -> None:
    rig = make_rig()
    client = rig.connect()
    for sequence in (1, 2):
        client.say(rig.request(sequence, 10))
        rig.run()
    rig.swap()
    client.say(rig.request(3, 10))
    assert len(client.answers()) == 2, "the first after a swap goes the batch path"
    rig.run()
    client.say(rig.request(4, 10))
    assert said(client) == [(3, 2, 20.0), (4, 2, 20.0)], "the next is answered at once"


@pytest.mark.parametrize("new_synchronous", [True, False])
def test_a_model_of_the_other_kind_may_take_over(rig: Rig, new_synchronous: bool) -> None:
    client = rig.connect()
    client.say(rig.request(1, 10))
    rig.run()
    rig.swap(synchronous=new_synchronous)
    for sequence in (2, 3):
        client.say(rig.request(sequence, 10))
        rig.run()
    assert said(client) == [(1, 1, 10.0), (2, 2, 20.0), (3, 2, 20.0)]


@pytest.mark.parametrize("rows_max", [2, 32])
def test_the_new_model_may_run_other_batches(rig: Rig, rows_max: int) -> None:
    client = rig.connect()
    client.say(rig.requests(range(1, 9)))
    rig.run()
    rig.swap(batch_rows_max=rows_max)
    client.say(rig.requests(range(9, 50)))
    rig.run()
    answers = client.answers()
    assert [answer.sequence for answer in answers] == list(range(1, 50))
    assert max(answer.batch_rows for answer in answers[8:]) == rows_max
    assert rig.counters.batches_by_rows[rows_max] > 0


def test_nothing_of_the_old_model_is_kept_not_even_by_who_stays_silent(make_rig: type[Rig]) -> None:
    """Arrays of a GPU's are freed under views of them, and those of a large model take
    memory."""
    rig = make_rig()
    clients = [rig.connect() for _ in range(3)]
    for sequence in (1, 2):
        clients[0].say(rig.request(sequence, 10))
        rig.run()
    first = rig.swap()
    clients[0].say(rig.request(3, 10))
    rig.run()
    arrays = weakref.ref(first.inputs), weakref.ref(first.outputs)
    gc.disable()
    try:
        rig.swap(3.0)
        rig.successors.remove(first)
        del first
        assert [array() for array in arrays] == [None, None]
    finally:
        gc.enable()


def test_sessions_that_have_gone_are_forgotten(rig: Rig) -> None:
    clients = [rig.connect() for _ in range(3)]
    clients[0].lose()
    clients[1].say(rig.request(1, 10))
    clients[1].session.close()
    rig.swap()
    clients[2].say(rig.request(2, 10))
    rig.run()
    assert said(clients[2]) == [(2, 2, 20.0)]
    # Forgotten is what nothing refers to: no answer can show it.
    assert len(rig.batcher._sessions) == 1


moves = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 2), st.integers(1, 12)),
        st.tuples(st.just("swap"), st.booleans(), st.sampled_from([1, 8, 16])),
        st.tuples(st.just("poll"), st.booleans(), st.just(0)),
    ),
    max_size=30,
)


@given(moves=moves, synchronous=st.booleans())
def test_whatever_happens_answers_are_in_order_and_generations_never_go_back(
    moves: list[tuple[str, int, int]], synchronous: bool
) -> None:
    from tests.daemon.conftest import Rig

    rig = Rig(synchronous=synchronous)
    clients = [rig.connect() for _ in range(3)]
    asked = [0, 0, 0]
    for what, first, second in moves:
        if what == "ask":
            sequences = range(asked[first] + 1, asked[first] + second + 1)
            asked[first] += second
            clients[first].say(rig.requests(sequences))
        elif what == "poll":
            rig.backend.finished = bool(first)
            rig.batcher.poll()
        elif rig.batcher._successor is None:  # nothing public says whether a swap waits
            rig.swap(float(rig.batcher.generation + 1), batch_rows_max=second, synchronous=bool(first))
    rig.run()
    for client, count in zip(clients, asked, strict=True):
        answers = client.answers()
        assert [answer.sequence for answer in answers] == list(range(1, count + 1))
        generations = [answer.model_generation for answer in answers]
        assert generations == sorted(generations)
        assert all(answer.outputs[0] == answer.sequence * answer.model_generation for answer in answers)
    assert rig.batcher.pending_rows == 0
