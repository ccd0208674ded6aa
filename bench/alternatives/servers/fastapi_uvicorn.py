"""FastAPI on uvicorn, over a Unix socket: `python fastapi_uvicorn.py MODEL SOCKET`.

One worker on uvloop and httptools, access log off, as uvicorn's documentation has it for speed; the body is
read and answered as bytes, without JSON.
"""

from __future__ import annotations

import sys


def main(model: str, address: str) -> None:
    """Serve until terminated."""
    import uvicorn
    from fastapi import FastAPI, Request, Response
    from session import open_model

    infer = open_model(model)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    async def answer(request: Request) -> Response:
        return Response(infer(await request.body()), media_type="application/octet-stream")

    app.add_route("/infer", answer, methods=["POST"])
    uvicorn.run(app, uds=address, loop="uvloop", http="httptools", access_log=False, log_level="error")


if __name__ == "__main__":
    main(*sys.argv[1:])
