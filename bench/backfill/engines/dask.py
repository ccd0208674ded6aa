"""Pieces on the workers of a Dask cluster that runs already; the only module that knows Dask.

A scheduler of Dask runs what anyone who reaches it sends, so its address must be on the loopback, or TLS
with certificates on both sides. Plan, inputs and the output directory are files that every worker sees under
the same names, on a file system where link() is atomic (NFS is one).
"""

from __future__ import annotations

import importlib
import ipaddress
import logging
import queue
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from sigd.bench.backfill.piece import Job, Outcome, run_piece
from sigd.bench.backfill.plan import Piece
from sigd.bench.errors import BadRequest, MissingDependency, PeerFailed

DEATHS_MAX: Final = 10
_CONNECT_TIMEOUT_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class Tls:
    """Files in PEM: the authority of both sides' certificates, this side's certificate and its key."""

    authority: Path
    certificate: Path
    key: Path


class DaskEngine:
    """See `Engine`."""

    def __init__(self, job: Job, address: str, tls: Tls | None) -> None:
        """Connect to the scheduler at `address`: tcp://HOST:PORT or tls://HOST:PORT.

        Raises:
            BadRequest: the address is not on the loopback and not TLS.
            MissingDependency: distributed is not installed.
            PeerFailed: no scheduler answers there, or it has no workers.
        """
        check_address(address, tls)
        self._job = job
        self._client = _connected(address, tls)
        self._done: queue.SimpleQueue[tuple[Piece, Any]] = queue.SimpleQueue()
        self._running: dict[str, Any] = {}
        self._deaths: dict[str, int] = {}
        try:
            self._client.wait_for_workers(1, timeout=_CONNECT_TIMEOUT_S)
        except TimeoutError:
            self._client.close()
            raise PeerFailed(f"the scheduler at {address} has no workers: dask worker {address}") from None
        threads = sum(self._client.nthreads().values())
        # The next piece is there when a worker has finished one.
        self.in_flight_max = 2 * threads

    def submit(self, piece: Piece) -> None:
        """Hand the piece to the scheduler."""
        future = self._client.submit(
            run_piece, self._job, piece, pure=False, key=f"sigd-{piece.id}-{uuid.uuid4().hex}"
        )
        self._running[piece.id] = future
        future.add_done_callback(lambda done: self._done.put((piece, done)))

    def wait(self, timeout_s: float) -> list[Outcome]:
        """What has come in; waits for the first, at most `timeout_s`."""
        found = []
        try:
            piece, future = self._done.get(timeout=timeout_s)
            while True:
                if (outcome := self._outcome(piece, future)) is not None:
                    found.append(outcome)
                piece, future = self._done.get_nowait()
        except queue.Empty:
            return found

    def close(self) -> None:
        """Take back what has not run, and leave the cluster as it is."""
        if self._running and self._client.status == "running":
            self._client.cancel(list(self._running.values()))
        self._client.close()

    def _outcome(self, piece: Piece, future: Any) -> Outcome | None:
        """None where the piece was handed out again."""
        distributed = _distributed()
        self._running.pop(piece.id, None)
        if future.status == "finished":
            outcome: Outcome = future.result()
            return outcome
        if future.status == "cancelled":
            raise PeerFailed(
                "the scheduler has gone: start it again; the same command goes on with what is left"
            )
        error = future.exception()
        if isinstance(error, distributed.KilledWorker):
            deaths = self._deaths[piece.id] = self._deaths.get(piece.id, 0) + 1
            if deaths < DEATHS_MAX:
                self.submit(piece)
                return None
        return Outcome(piece=piece.id, error=f"{type(error).__name__}: {error}")


def check_address(address: str, tls: Tls | None) -> None:
    """Raise BadRequest unless the scheduler is on the loopback or reached over TLS."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    if not host or port is None or parts.scheme not in ("tcp", "tls"):
        raise BadRequest(f"--scheduler is {address!r}, expected tcp://127.0.0.1:PORT or tls://HOST:PORT")
    if parts.scheme == "tls" and tls is None:
        raise BadRequest("tls:// needs --tls-ca, --tls-cert and --tls-key: both sides show a certificate")
    if parts.scheme == "tcp" and not _is_loopback(host):
        raise BadRequest(
            f"{address} is not on this machine and not encrypted: a scheduler runs what anyone sends to it."
            " Start it with --tls-ca-file, --tls-cert and --tls-key and give tls://HOST:PORT"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _distributed() -> Any:
    """The package, whose functions have no types."""
    try:
        return importlib.import_module("distributed")
    except ImportError:
        raise MissingDependency(
            "--scheduler needs Dask's distributed: pip install 'sigd[backfill]', here and on the workers"
        ) from None


def _connected(address: str, tls: Tls | None) -> Any:
    distributed = _distributed()
    # What it says of connections that end is told by the outcome of the pieces.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    security: Any = None
    if tls is not None:
        security = distributed.Security(
            require_encryption=True,
            tls_ca_file=str(tls.authority),
            tls_client_cert=str(tls.certificate),
            tls_client_key=str(tls.key),
        )
    try:
        return distributed.Client(
            address, security=security, timeout=_CONNECT_TIMEOUT_S, set_as_default=False
        )
    except (OSError, TimeoutError, ValueError) as error:
        raise PeerFailed(f"no scheduler of Dask answers at {address}: {error}") from None
