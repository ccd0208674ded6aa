"""A reader of the board sees what was written last or what was before that, and nothing between."""

from __future__ import annotations

import mmap

from hypothesis import given, settings
from hypothesis import strategies as st

from sigd.daemon.shadow.statistics import OUTPUTS_SHOWN, STANDING_BYTES, Board, OutputStatistics, Statistics

LARGEST = Statistics(
    compared=2**63 - 1,
    agreed=2**63 - 1,
    skipped=2**63 - 1,
    left_out=2**63 - 1,
    failed=2**63 - 1,
    differences=[2**63 - 1] * 10,
    difference_sum=1e300,
    difference_max=3.4e38,
    generation=2**32 - 1,
    outputs=[OutputStatistics(1e300, 1e300, -1e300, 1e300, 1e300)] * OUTPUTS_SHOWN,
)


def test_a_board_starts_with_nothing_and_shows_what_was_written_last() -> None:
    memory = mmap.mmap(-1, STANDING_BYTES)
    reader, writer = Board(memory), Board(memory)
    assert reader.read() == Statistics()
    for compared in range(5):
        writer.write(Statistics(compared=compared, failed=1))
        assert reader.read() == Statistics(compared=compared, failed=1)
    assert Board(memory).read().compared == 4
    Board(memory).write(Statistics(compared=9))
    assert reader.read().compared == 9


def test_the_largest_there_is_has_room() -> None:
    memory = mmap.mmap(-1, STANDING_BYTES)
    Board(memory).write(LARGEST)
    assert Board(memory).read() == LARGEST


@settings(max_examples=50)
@given(
    st.sets(st.integers(0, STANDING_BYTES // 8 - 1), max_size=60),
    st.integers(1, 4),
)
def test_of_a_write_that_is_seen_in_part_or_in_any_order_nothing_is_read(
    words: set[int], writes: int
) -> None:
    """Any of its 8 bytes may be there while the rest is not."""
    memory = mmap.mmap(-1, STANDING_BYTES)
    writer = Board(memory)
    for compared in range(writes):
        writer.write(Statistics(compared=compared, agreed=7))
    before, old = bytes(memory), Board(memory).read()
    writer.write(Statistics(compared=100, skipped=1 << 40))
    after, new = bytes(memory), Board(memory).read()
    assert old != new
    for word in range(STANDING_BYTES // 8):
        if word not in words:
            memory[8 * word : 8 * word + 8] = before[8 * word : 8 * word + 8]
    assert Board(memory).read() in (old, new)
    if bytes(memory) not in (before, after):
        # The writer was killed there: the next one goes on, over what is not whole.
        Board(memory).write(Statistics(compared=101))
        assert Board(memory).read().compared == 101


def test_killed_writer_is_not_waited_for() -> None:
    memory = mmap.mmap(-1, STANDING_BYTES)
    reader = Board(memory)
    Board(memory).write(Statistics(compared=1))
    assert reader.read().compared == 1
    memory[:] = b"\xff" * STANDING_BYTES
    assert reader.read().compared == 1
