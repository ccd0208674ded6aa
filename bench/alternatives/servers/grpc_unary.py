"""gRPC by hand, unary calls over a Unix socket: `python grpc_unary.py MODEL SOCKET`.

A thread pool of one and bytes for messages, for gRPC's guide to performance says that in Python unary calls
are faster than streams, and protocol buffers would only add to it.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor


def main(model: str, address: str) -> None:
    """Serve until terminated."""
    import grpc
    from session import open_model

    infer = open_model(model)
    handler = grpc.unary_unary_rpc_method_handler(lambda features, _context: infer(features))
    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.max_concurrent_streams", 1024)])
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("bench.Model", {"Infer": handler}),)
    )
    server.add_insecure_port(f"unix:{address}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main(*sys.argv[1:])
