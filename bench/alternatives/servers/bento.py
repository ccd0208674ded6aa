"""BentoML: `python bento.py MODEL 127.0.0.1:PORT`.

One worker, no batching; the request and the answer are bytes, which its types for files allow.
"""

from __future__ import annotations

import os
import sys


def main(model: str, address: str) -> None:
    """Serve until terminated."""
    os.environ |= {"BENCH_MODEL": model, "BENTOML_DO_NOT_TRACK": "True"}
    here = os.path.dirname(os.path.abspath(__file__))
    command = ["-m", "bentoml", "serve", "bento_service:Model", "--working-dir", here, "--host", "127.0.0.1"]
    os.execv(sys.executable, [sys.executable, *command, "--port", address.rpartition(":")[2]])


if __name__ == "__main__":
    main(*sys.argv[1:])
