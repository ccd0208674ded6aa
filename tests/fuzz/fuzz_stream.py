"""A byte-level fuzz loop: spoilt streams against the decoder, against sessions, and against a live daemon.

    python -m tests.fuzz.fuzz_stream --frames 1000000 --live-frames 100000 --seed 1

Every stream starts from valid frames and is then cut, flipped, spliced or drowned in random bytes. A parser
of a few
lines, written from the contract alone, says what a correct reader makes of it: which frames come before the
first wrong byte, and which code answers that byte. What the project makes of it must be exactly that, however
the bytes are cut into reads and whenever rows are answered; and a well-behaved neighbour must be served
correctly all the while.

A failure names its seed and stream; `--seed S --stream N` replays that one alone.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import time
import warnings
from collections.abc import Iterator

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from tests.fuzz.live_daemon import LiveDaemon
from tests.fuzz.readers import fuzz_framer, fuzz_inbox
from tests.fuzz.sessions import SessionRig, as_in_a_daemon, greeting
from tests.fuzz.streams import Traffic

FEATURES = (1, 3, 10, 64, 700, 16_373)  # requests of 10 are as long as a Hello
FEATURES_WEIGHTS = (4, 8, 8, 8, 1, 0.2)
STREAMS_A_RIG = 50


def fuzz_decoder(seed: int, index: int) -> int:
    """Stream number `index` of `seed` against the readers of the codec. Returns the frames that they
    judged."""
    draw = random.Random(f"{seed} decoder {index}")
    features = draw.choices(FEATURES, FEATURES_WEIGHTS)[0]
    stream = bytes(Traffic(draw, features).stream())
    if draw.random() < 0.1:
        return fuzz_framer(draw, stream)
    return fuzz_inbox(draw, stream, features)


def fuzz_sessions(seed: int, index: int) -> int:
    """Some tens of streams, one after the other, against sessions of one batcher. Returns the frames
    answered."""
    draw = random.Random(f"{seed} sessions {index}")
    features = draw.choices(FEATURES, FEATURES_WEIGHTS)[0]
    rig = SessionRig(draw, features)
    traffic = Traffic(draw, features)
    return sum(rig.play(greeting(draw, rig.served) + traffic.stream()) for _ in range(STREAMS_A_RIG))


@contextlib.contextmanager
def replayable(seed: int, part: str, index: int) -> Iterator[None]:
    """A failure says how to see it again."""
    try:
        yield
    except Exception as error:
        error.add_note(f"replay: --seed {seed} --part {part} --stream {index}")
        raise


def run_part(part: str, frames: int, seed: int, progress: Progress) -> int:
    """Streams of one part until `frames` frames were judged; how many there were."""
    fuzz = {"decoder": fuzz_decoder, "sessions": fuzz_sessions}[part]
    bar = progress.add_task(part, total=frames)
    judged = index = 0
    while judged < frames:
        with replayable(seed, part, index):
            judged += fuzz(seed, index)
        index += 1
        progress.update(bar, completed=min(judged, frames))
    return judged


def run_live(frames: int, seed: int, progress: Progress) -> int:
    """Streams against one live daemon until it answered `frames` of their frames; how many it did."""
    bar = progress.add_task("live daemon", total=frames)
    answered = 0
    draw = random.Random(f"{seed} live")
    with LiveDaemon(draw) as daemon:
        traffic = Traffic(draw, daemon.served.features)
        while answered < frames:
            answered += daemon.play(greeting(draw, daemon.served) + traffic.stream())
            progress.update(bar, completed=min(answered, frames))
    return answered


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Fuzz the decoder, sessions and a live daemon with spoilt streams of bytes."
    )
    parser.add_argument(
        "--frames",
        type=int,
        default=1_000_000,
        help="against the decoder; a quarter as many against sessions",
    )
    parser.add_argument(
        "--live-frames", type=int, default=100_000, help="against a live daemon; 0 leaves it out"
    )
    parser.add_argument("--seed", type=int, default=1, help="other streams (default: %(default)s)")
    parser.add_argument("--part", choices=("decoder", "sessions"), default="decoder", help="of --stream")
    parser.add_argument("--stream", type=int, help="replay this one stream alone")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Fuzz, or replay one stream; the exit code."""
    options = parse_arguments(arguments)
    warnings.simplefilter("error")
    started_s = time.monotonic()
    columns = (TextColumn("{task.description:12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    judged = {}
    with as_in_a_daemon(), Progress(*columns, disable=options.quiet) as progress:
        if options.stream is not None:
            fuzz = {"decoder": fuzz_decoder, "sessions": fuzz_sessions}[options.part]
            judged[options.part] = fuzz(options.seed, options.stream)
        else:
            judged["decoder"] = run_part("decoder", options.frames, options.seed, progress)
            judged["sessions"] = run_part("sessions", options.frames // 4, options.seed, progress)
            if options.live_frames:
                judged["live daemon"] = run_live(options.live_frames, options.seed, progress)
    told = ", ".join(f"{part} {frames:,}" for part, frames in judged.items())
    print(f"no failure; frames judged: {told}; seed {options.seed}, {time.monotonic() - started_s:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
