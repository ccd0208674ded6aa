"""What a running daemon may be asked to do, on its admin socket or by a signal."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sigd.daemon.admin.messages import RELOAD_S, AdminRequest, DrainAnswer, ModelReload, ReloadAnswer, Status
from sigd.daemon.admin.server import Op
from sigd.daemon.errors import DaemonError
from sigd.daemon.runtime.text import as_utf8

if TYPE_CHECKING:
    from sigd.daemon.reload.reloader import Reloaded, Reloader
    from sigd.daemon.serving.models import ServedModels

log = logging.getLogger(__name__)


class Operations:
    """The ops of one daemon.

    Args:
        take_status: puts the status together.
        stop: lets the daemon drain and end.
        needs_time: tells the service manager how many seconds a reload may take: `systemctl reload` waits for
            it.

    Attributes:
        ops: for the admin socket.
    """

    def __init__(
        self,
        models: ServedModels,
        reloader: Reloader,
        take_status: Callable[[], Awaitable[Status]],
        stop: Callable[[], None],
        needs_time: Callable[[float], None],
    ) -> None:
        self._models = models
        self._reloader = reloader
        self._take_status = take_status
        self._stop = stop
        self._needs_time = needs_time
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._hung_up: set[asyncio.Task[None]] = set()
        self.ops: Mapping[str, Op] = {
            "status": self._status,
            "reload": self._reload,
            "drain": self._drain,
        }

    def hang_up(self) -> None:
        """SIGHUP: every model's file is read again. How it went stands in the log."""
        task = asyncio.create_task(self._reload_all())
        # The loop itself keeps no task alive.
        self._hung_up.add(task)
        task.add_done_callback(self._hung_up.discard)

    def ended(self, exit_code: int) -> None:
        """Every client is answered, and the process will end with this code."""
        self._ended.set_result(exit_code)

    async def _reload_all(self) -> None:
        try:
            await self._reloader.reload()
        except DaemonError as error:
            log.error("SIGHUP: nothing is reloaded: %s", error)

    async def _status(self, _request: AdminRequest) -> Status:
        return await self._take_status()

    async def _reload(self, request: AdminRequest) -> ReloadAnswer:
        path = Path(request.model) if request.model else None
        self._needs_time(RELOAD_S * len(list(self._models)))
        went = await self._reloader.reload(request.name, path, allow_new_shape=request.allow_new_shape)
        return ReloadAnswer(list(map(self._told, went)))

    async def _drain(self, _request: AdminRequest) -> DrainAnswer:
        self._stop()
        return DrainAnswer(await asyncio.shield(self._ended))

    def _told(self, went: Reloaded) -> ModelReload:
        served = self._models.find(went.name)
        assert served is not None
        spec = served.spec
        return ModelReload(
            name=as_utf8(went.name),
            error=went.error,
            path=as_utf8(spec.path),
            sha256=spec.sha256.hex(),
            generation=served.generation,
            features=spec.request_values,
            outputs=spec.answer_values,
            backend=served.backend.name,
            seconds=went.seconds,
            withdrawn=went.withdrawn,
            note=as_utf8(went.note),
        )
