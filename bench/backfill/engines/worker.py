"""A worker process: reads the job, then one piece after the other from standard input, and writes what came
of each.

It ends with its driver, whatever ends that: at the end of the input, or by the signal that the kernel sends
then.
"""

from __future__ import annotations

import os
import sys
import traceback

from sigd.bench.backfill.engines.messages import read_message, write_message
from sigd.bench.backfill.piece import Job, Outcome, run_piece
from sigd.bench.backfill.plan import Piece
from sigd.daemon.runtime.process import die_with_parent


def main() -> None:
    """Run until the input ends. The first argument is the driver's process id."""
    die_with_parent()
    if os.getppid() != int(sys.argv[1]):
        return  # It ended before the line above.
    # What a library prints must not end up between the messages.
    with os.fdopen(os.dup(1), "wb") as outcomes:
        os.dup2(2, 1)
        job = read_message(sys.stdin.buffer, Job)
        if job is None:
            return
        while (piece := read_message(sys.stdin.buffer, Piece)) is not None:
            try:
                outcome = run_piece(job, piece)
            except Exception:  # noqa: BLE001 - the driver is told, and the other pieces go on
                outcome = Outcome(piece=piece.id, error=f"a fault of sigd's own:\n{traceback.format_exc()}")
            write_message(outcomes, outcome)


if __name__ == "__main__":
    main()
