"""Ray Serve: `python ray_serve.py MODEL 127.0.0.1:PORT`.

One replica beside the HTTP proxy on the same node, no batching, as its guide to performance has it for a
model of microseconds.
"""

from __future__ import annotations

import signal
import sys


def main(model: str, address: str) -> None:
    """Serve until terminated."""
    import ray
    from ray import serve
    from session import open_model
    from starlette.requests import Request
    from starlette.responses import Response

    class Model:
        def __init__(self) -> None:
            self.infer = open_model(model)

        async def __call__(self, request: Request) -> Response:
            return Response(self.infer(await request.body()), media_type="application/octet-stream")

    ray.init(include_dashboard=False, log_to_driver=False, num_cpus=4)
    serve.start(http_options={"host": "127.0.0.1", "port": int(address.rpartition(":")[2])})
    deployment = serve.deployment(Model, num_replicas=1, max_ongoing_requests=128)
    serve.run(deployment.bind(), route_prefix="/infer")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
