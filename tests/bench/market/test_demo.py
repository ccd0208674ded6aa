"""What `sigd demo` chooses for a machine, and how its verdict tells the machine's part from sigd's."""

from __future__ import annotations

import pytest

from sigd.bench.commands.demo import choose_idle, verdict_lines


@pytest.mark.parametrize("allowed", [[0], [0, 1], [4, 9]])
def test_few_cores_are_not_spun_on(allowed: list[int]) -> None:
    assert choose_idle(allowed) == (None, None, "backoff")


def test_with_more_cores_daemon_and_client_have_one_each() -> None:
    daemon, client, idle = choose_idle([0, 1, 2, 3])
    assert idle == "spin"
    assert daemon == 3
    assert client in (0, 1, 2)


@pytest.mark.parametrize(
    ("p99_us", "daemon_p99_us", "mark", "words"),
    [
        (80.0, 20.0, "✔", "within the budget of 100 us"),
        (
            180.0,
            20.0,
            "●",
            "sigd keeps the budget of 100 us, and the way there and back on this machine does not",
        ),
        (180.0, 120.0, "✘", "over the budget of 100 us, in sigd too"),
    ],
)
def test_verdict_says_whose_part_it_is(p99_us: float, daemon_p99_us: float, mark: str, words: str) -> None:
    lines = verdict_lines(p99_us, daemon_p99_us, 100.0)
    assert mark in lines[0]
    assert f"p99 {p99_us} us from request to signal; in sigd {daemon_p99_us} us" in lines[0]
    assert words in lines[0]
