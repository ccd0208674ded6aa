"""The book of requests that wait for their answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigd.wire.client.unanswered import Unanswered
from sigd.wire.errors import ProtocolBroken

sequences = st.lists(st.integers(0, 2**64 - 1), max_size=8)


@given(sequences, sequences)
def test_answers_in_order_are_right(lone: list[int], many: list[int]) -> None:
    book = Unanswered()
    for sequence in lone:
        book.append(sequence)
    if many:
        book.extend(np.array(many, np.uint64))
    assert len(book) == len(lone) + len(many)
    book.answer_many(np.array(lone, np.uint64))
    for sequence in many:
        book.answer(sequence)
    assert len(book) == 0


def test_an_answer_out_of_order() -> None:
    book = Unanswered()
    book.extend(np.array([5, 6, 7], np.uint64))
    book.answer(5)
    with pytest.raises(ProtocolBroken, match="answered sequence 7, expected 6"):
        book.answer(7)


def test_answer_without_a_request() -> None:
    book = Unanswered()
    book.append(5)
    with pytest.raises(ProtocolBroken, match="answered sequence 9, which was not asked"):
        book.answer_many(np.array([5, 9], np.uint64))


def test_sequences_count_on_and_wrap() -> None:
    book = Unanswered()
    assert book.next_sequence == 0
    book.append(2**64 - 1)
    assert book.next_sequence == 0
    book.append(2**64 - 3)
    assert book.next_sequences(4).tolist() == [2**64 - 2, 2**64 - 1, 0, 1]
    assert book.next_sequences(0).tolist() == []
    book.extend(np.array([9, 2**64 - 1], np.uint64))
    assert book.next_sequence == 0
