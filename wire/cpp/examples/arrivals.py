"""When the events of a market capture arrived, as a file that uring_engine replays.

    python arrivals.py CAPTURE.gz ARRIVALS.i64 [SECONDS]

A capture has one event a line, which begins with the receive time in ns. The file is that time since the
first event, a little-endian int64 each.
"""

from __future__ import annotations

import gzip
import struct
import sys


def main() -> int:
    """Read, subtract, write."""
    if len(sys.argv) not in (3, 4):
        print(__doc__, file=sys.stderr)
        return 2
    longest_ns = int(float(sys.argv[3]) * 1e9) if len(sys.argv) == 4 else 1 << 62
    first_ns = last_ns = count = 0
    with gzip.open(sys.argv[1], "rb") as capture, open(sys.argv[2], "wb") as arrivals:
        for line in capture:
            receive_ns = int(line.split(b" ", 1)[0])
            first_ns = first_ns or receive_ns
            # a collector's clock may be set back; an arrival is never before the one before it
            last_ns = max(last_ns, receive_ns - first_ns)
            if last_ns > longest_ns:
                break
            arrivals.write(struct.pack("<q", last_ns))
            count += 1
    print(f"{count} arrivals")
    return 0


if __name__ == "__main__":
    sys.exit(main())
