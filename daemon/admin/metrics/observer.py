"""The daemon as it is seen from outside: what watches it while it serves, and the pages where that is
told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from sigd.daemon.admin.loopback import listen_loopback
from sigd.daemon.admin.metrics.exposition import CONTENT_TYPE, Exposition
from sigd.daemon.admin.metrics.family import Source
from sigd.daemon.admin.metrics.gpu_watch import GpuWatch
from sigd.daemon.admin.metrics.http import Page, Pages
from sigd.daemon.admin.server import AdminServer
from sigd.daemon.config.address import parse_loopback
from sigd.daemon.runtime.loop_monitor import GarbageWatch, LoopWatch

if TYPE_CHECKING:
    from sigd.daemon.config.config import Config
    from sigd.daemon.recording.recorder import Recorder
    from sigd.daemon.reload.remembered import RememberedModels
    from sigd.daemon.reload.validator import Validator
    from sigd.daemon.serving.batcher import Batcher
    from sigd.daemon.serving.counters import ClientCounters
    from sigd.daemon.shadow.supervisor import Shadows
    from sigd.daemon.transport.connections import Clients
    from sigd.daemon.transport.lanes import RunningLane


SCRAPE_EVERY_S: Final = 0.1
"""Ten scrapes a second take less than a hundredth of the loop; as many as one process can make took most of
it."""


class Observer:
    """Watches from `start()` to `stop()`.

    Attributes:
        loop_watch, garbage_watch: what they note.
        pages: for the admin socket; they are on loopback too, where the configuration says so.
        place: where on loopback, "" where nowhere; from `prepare()` on.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        config: Config,
        models: Iterable[Batcher],
        clients: Clients,
        counters: ClientCounters,
        validator: Validator | None,
        recorder: Recorder | None,
        shadows: Shadows,
        cores: AbstractSet[int],
        remembered: RememberedModels,
        lanes: Iterable[RunningLane],
    ) -> None:
        """
        Args:
            cores: where work beside the loop runs.
        """
        self.loop_watch = LoopWatch(loop)
        self.garbage_watch = GarbageWatch()
        self.pages: Pages = {"/metrics": self._metrics, "/healthz": self._health}
        self.place = ""
        self._listen = config.metrics_listen
        began_s = datetime.now(UTC).timestamp()
        self._gpu_watch = GpuWatch(loop, lambda: [batcher.backend for batcher in models], cores)
        self._exposition = Exposition(
            Source(
                models,
                clients,
                counters,
                self.loop_watch,
                self.garbage_watch,
                self._gpu_watch,
                validator,
                recorder,
                shadows,
                began_s,
                config.idle.value,
                remembered,
                lanes,
            )
        )
        self._server: AdminServer | None = None

    async def prepare(self) -> None:
        """Do all that takes long, and listen.

        Raises:
            MissingDependency: the port cannot be had.
        """
        self._exposition.prepare()
        if self._listen:
            listener = listen_loopback(parse_loopback(self._listen))
            self.place = (
                f"http://{parse_loopback(self._listen)._replace(port=listener.getsockname()[1])}/metrics"
            )
            self._server = AdminServer({}, self.pages, every_s=SCRAPE_EVERY_S)
            await self._server.start(listener)

    def start(self) -> None:
        """Begin to watch."""
        self.loop_watch.start()
        self.garbage_watch.start()
        self._gpu_watch.start()

    def stop(self) -> None:
        """Watch no more, and answer on loopback no more."""
        self.loop_watch.stop()
        self.garbage_watch.stop()
        self._gpu_watch.stop()
        if self._server is not None:
            self._server.close()

    async def _metrics(self) -> Page:
        return Page(HTTPStatus.OK, CONTENT_TYPE, await self._exposition.scrape())

    async def _health(self) -> Page:
        """An answer is proof enough: the loop that serves gives it."""
        return Page(HTTPStatus.OK, "text/plain; charset=utf-8", b"ok\n")
