"""What is on the screen, at 80 columns and 24 lines and beyond."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import msgspec
import pytest
from rich.console import Console

from sigd.daemon.admin.messages import LatencyStatus, ModelStatus, Status
from sigd.daemon.recording.status import RecorderStatus
from sigd.daemon.serving.counters import LatencyCounts
from sigd.daemon.top.interval import between
from sigd.daemon.top.view import TREND_COLUMNS, Screen, plain
from sigd.daemon.transport.lane_status import LaneStatus

if TYPE_CHECKING:
    from tests.daemon.top.conftest import MakeModel, MakeStatus


@pytest.fixture
def busy(make_model: MakeModel) -> ModelStatus:
    """A model with large figures of everything."""
    return make_model(
        answers={"OK": 5_621_040, "BUSY": 1_000, "MODEL_ERROR": 20},
        batches_by_rows={64: 90_000},
        pending_rows=16_000,
        waiting_rows=15_000,
        total=LatencyStatus([(12_032, 900), (900_096, 100)], 900_000),
        queue=LatencyStatus([(6_016, 1000)], 6_000),
        infer=LatencyStatus([(6_016, 1000)], 6_000),
    )


@pytest.fixture
def hard(make_status: MakeStatus, busy: ModelStatus) -> Status:
    """A daemon that has a hard time."""
    return make_status(
        10.0,
        models=[busy],
        clients=[f"engine-{number}" for number in range(40)],
        transports={"stream": 30, "shm": 10},
        slow_readers=3,
        rejects={"MALFORMED_FRAME": 12, "TOO_MANY_CONNECTIONS": 40},
        recorder=RecorderStatus(
            recording="/r",
            requests=1_000_000,
            dropped=5,
            written_bytes=2,
            stored_bytes=1,
            paused_because="No space left on device",
        ),
        loop={
            "stalls": 1000,
            "stalled_ns": 9_000_000_000,
            "involuntary_switches": 100_000,
            "major_faults": 9,
        },
    )


def shown(screen: Screen, width: int = 80, height: int = 24) -> list[str]:
    console = Console(width=width, height=height, file=io.StringIO(), color_system=None, highlight=False)
    console.print(screen)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def screen_of(*statuses: Status) -> Screen:
    screen = Screen("/run/sigd/sigd.sock.admin", 1.0)
    before = None
    for status in statuses:
        screen.show(between(before, status))
        before = status
    return screen


def test_everything_is_there_and_fits(make_status: MakeStatus, hard: Status) -> None:
    lines = shown(screen_of(make_status(), hard))
    assert len(lines) <= 23
    assert all(len(line) <= 80 for line in lines)
    text = "\n".join(lines)
    for words in (
        "sigd 1.2.3  pid 100  up 0 m 20 s  spin  200 MiB  /run/sigd/sigd.sock",
        "the last 10.0 s",
        "lob (64 -> 3)  generation 1  onnxruntime  abababababab",
        "562,206 requests/s  9,000 batches/s of 64.0 rows  16,000 in flight",
        "clients: 30 by stream, 10 by shm; 0 came  slow readers 3  MALFORMED_FRAME 12",
        "engine-0  engine-1",
        "waited 0.0%",
        "stalls 1,000 (9000.0 ms)",
        "recorder: 100,000 requests/s, dropped 5, paused: No space left on device",
        "q leaves",
    ):
        assert words in text
    (total,) = (line.split() for line in lines if line.startswith("total"))
    assert total == ["total", "100.8", "12.0", "12.0", "900.0", "900.0", "900.0"]


def test_lanes_have_lines_and_the_screen_keeps_its_height(make_status: MakeStatus, hard: Status) -> None:
    lanes = [
        LaneStatus(
            core=core,
            sessions=core,
            lent=core,
            handed_over={"deadline": 7, "features": core},
            stalled=core == 9,
            requests=1_000_000 * core,
            asleep=core == 3,
        )
        for core in range(1, 10)
    ]
    two = msgspec.structs.replace(hard, lanes=lanes[1:3])
    text = "\n".join(shown(screen_of(make_status(), two)))
    assert "lane 3: 300,000 requests/s, 3 sessions, asleep, to Python: deadline 7, features" in text
    assert "lane 2: 200,000 requests/s, 2 sessions, to Python: deadline" in text
    lines = shown(screen_of(make_status(), msgspec.structs.replace(hard, lanes=lanes)))
    assert len(lines) <= 23
    assert [line.split(":")[0] for line in lines if line.startswith("lane ")] == [
        "lane 9",
        "lane 8",
        "lane 7",
        "lane 6",
    ]
    assert "STALLED" in next(line for line in lines if line.startswith("lane 9"))
    assert "and 5 more lanes" in "\n".join(lines)


def test_reloads_are_told_where_there_were_any(make_status: MakeStatus, make_model: MakeModel) -> None:
    model = make_model(generation=3, reloads=2)
    assert "generation 3  reloads 2  onnxruntime" in "\n".join(shown(screen_of(make_status(models=[model]))))
    refused = make_model(reloads_refused=1)
    text = "\n".join(shown(screen_of(make_status(models=[refused]))))
    assert "generation 1  reloads refused 1  onnxruntime" in text


def test_where_the_time_goes_and_where_it_went(make_status: MakeStatus, hard: Status) -> None:
    lines = shown(screen_of(make_status(), hard))
    (bar,) = (line for line in lines if "█" in line and "queue" in line)
    assert bar.endswith("94% model, 6% queue")
    assert bar.count("█") == 47
    assert bar.count("▒") == 3


def test_the_trend_grows_to_the_right_and_no_wider(make_status: MakeStatus, make_model: MakeModel) -> None:
    counted: list[tuple[int, int]] = []
    statuses = [make_status()]
    for number in range(1, TREND_COLUMNS + 30):
        counted.append((number * 1280, 1))
        model = make_model(answers={"OK": number}, total=LatencyStatus(list(counted), number * 1280))
        statuses.append(make_status(float(number), models=[model]))
    (trend,) = (line for line in shown(screen_of(*statuses)) if line.startswith("p99  "))
    heights = trend.split()[1]
    assert len(heights) == TREND_COLUMNS
    assert list(heights) == sorted(heights)
    assert heights[-1] == "█"
    assert trend.endswith(f"to {(TREND_COLUMNS + 29) * 1.28:.1f} us")


def test_nothing_to_show(make_status: MakeStatus) -> None:
    screen = Screen("/s.admin", 1.0)
    assert shown(screen) == ["asking /s.admin ..."]
    screen.show(between(None, make_status()))
    text = "\n".join(shown(screen))
    assert "no requests" in text
    assert "clients: none" in text


def test_no_daemon_answers_and_then_another_does(make_status: MakeStatus, hard: Status) -> None:
    screen = screen_of(make_status(), hard)
    screen.silent("/s.admin: no daemon answers there")
    text = "\n".join(shown(screen))
    assert "no answer, these are the last figures: /s.admin: no daemon answers there" in text
    assert "562,206 requests/s" in text
    screen.show(between(hard, make_status(pid=7)))
    text = "\n".join(shown(screen))
    assert "another daemon than before: since its start" in text
    assert "no answer" not in text


@pytest.mark.parametrize(("height", "models"), [(24, 1), (40, 3), (100, 6)])
def test_as_many_models_as_there_is_room_for(
    make_status: MakeStatus, busy: ModelStatus, height: int, models: int
) -> None:
    six = [
        msgspec.structs.replace(busy, name=f"model-{number}", answers={"OK": number}) for number in range(6)
    ]
    lines = shown(screen_of(make_status(models=six), make_status(1.0, models=six)), height=height)
    assert len(lines) <= height - 1
    assert sum(line.startswith("model-") for line in lines) == models
    assert any(f"and {6 - models} more models" in line for line in lines) == (models < 6)


def test_names_cannot_move_the_cursor(make_status: MakeStatus, make_model: MakeModel) -> None:
    bad = make_status(models=[make_model(name="m\x1b[2J")], clients=["[red]x\x1b[H\n", ""])
    text = "\n".join(shown(screen_of(bad)))
    assert "\x1b" not in text
    assert "[red]x\\x1b[H\\n" in text
    assert "(no name)" in text
    assert "\x1b" not in plain(between(None, bad))


def test_what_took_longer_than_the_bins_reach_says_so(make_status: MakeStatus, make_model: MakeModel) -> None:
    def status(uptime_s: float, *slow: int) -> Status:
        counts = LatencyCounts()
        for duration_ns in (*[10_000] * 97, *slow):
            counts.add(duration_ns)
        return make_status(uptime_s, models=[make_model(total=LatencyStatus(counts.sparse(), counts.max_ns))])

    first, second, third = (
        status(10.0),
        status(11.0, 12_000_000_000),
        status(12.0, 12_000_000_000, 3_000_000_000),
    )
    fresh = between(first, second)
    assert "p50_us=>1073741 p99_us=>1073741 p99.9_us=>1073741 max_us=12,000,000 " in plain(fresh)
    total = next(line for line in shown(screen_of(first, second)) if line.startswith("total"))
    assert total.split()[1:] == ["<", "12.0", "s", *(">", "1.07", "s") * 4, "12.0", "s"]
    # The longest of all was before; how long this one took is not known.
    older = between(second, third)
    assert "max_us=>1073741 " in plain(older)
    assert older.models[0].total.longer_than_1073742_us == 1
    # Of all since the start 2 of 99 are so long: p99 is one of them, p90 is not.
    since_start = between(None, third).models[0].total
    assert (since_start.lies_beyond(90), since_start.lies_beyond(99)) == (False, True)


def test_a_line_for_a_log(make_status: MakeStatus, hard: Status) -> None:
    line = plain(between(make_status(), hard))
    assert line == (
        "model=lob requests/s=562,206 p50_us=12.0 p99_us=900.0 p99.9_us=900.0 max_us=900.0 model_p50_us=6.0"
        " rows/batch=64.0 in_flight=16000 BUSY=1,000 MODEL_ERROR=20 clients=40 stalls=1000"
    )
    assert plain(between(hard, make_status(pid=7))).endswith("restarted=yes")


@pytest.mark.parametrize(
    ("seconds", "said"), [(59.9, "0 m 59 s"), (3_599, "59 m 59 s"), (7_500, "2 h 05 m"), (90_000, "1 d 1 h")]
)
def test_how_long_it_is_up(make_status: MakeStatus, seconds: float, said: str) -> None:
    assert f"up {said} " in shown(screen_of(make_status(seconds - 10)))[0]
