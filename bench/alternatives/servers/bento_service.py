"""The service that bento.py runs."""

from __future__ import annotations

import os

try:
    import bentoml
except ImportError:
    # Only the environment of the alternatives has it, and only there this is run.
    bentoml = None

if bentoml is not None:
    from session import open_model
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    _infer = open_model(os.environ["BENCH_MODEL"])

    async def _answer(request: Request) -> Response:
        return Response(_infer(await request.body()), media_type="application/octet-stream")

    @bentoml.asgi_app(Starlette(routes=[Route("/infer", _answer, methods=["POST"])]))
    @bentoml.service(
        workers=1, traffic={"timeout": 30, "max_concurrency": 128}, logging={"access": {"enabled": False}}
    )
    class Model:
        """Nothing but the mounted application."""
