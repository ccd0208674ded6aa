"""LitServe: `python litserve_http.py MODEL 127.0.0.1:PORT`.

One worker and no batching, its fast queue, and the request read as bytes, as its documentation has it for
latency.
"""

from __future__ import annotations

import sys
from typing import Any

try:
    import litserve
except ImportError:
    # Only the environment of the alternatives has it, and only there this is run.
    litserve = None

if litserve is not None:
    from fastapi import Request, Response
    from session import open_model

    class Model(litserve.LitAPI):  # type: ignore[misc]
        """Named where the worker, a process of its own, can find it."""

        def __init__(self, model: str) -> None:
            super().__init__(api_path="/infer")
            self.model = model

        def setup(self, device: str) -> None:
            """Open the session, in the worker."""
            self.infer = open_model(self.model)

        async def decode_request(self, request: Request) -> Any:
            """The body."""
            return await request.body()

        def predict(self, features: bytes) -> bytes:
            """The outputs."""
            answer: bytes = self.infer(features)
            return answer

        def encode_response(self, outputs: bytes) -> Response:
            """The outputs as they are."""
            return Response(outputs, media_type="application/octet-stream")


def main(model: str, address: str) -> None:
    """Serve until terminated."""
    server = litserve.LitServer(
        Model(model), accelerator="cpu", workers_per_device=1, fast_queue=True, timeout=30
    )
    server.run(
        host="127.0.0.1",
        port=int(address.rpartition(":")[2]),
        num_api_servers=1,
        api_server_worker_type="thread",
        generate_client_file=False,
        access_log=False,
        log_level="error",
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
