"""The client in Python: `from sigd.wire.client import connect`."""

from sigd.wire.client.client import Client, connect
from sigd.wire.client.response_inbox import Response

__all__ = ["Client", "Response", "connect"]
