"""The composition root: opens the model, warms it up, listens, serves, drains."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic_ns

from sigd.daemon.admin import status as snapshot
from sigd.daemon.admin.messages import END_GRACE_S, Status
from sigd.daemon.admin.metrics.observer import Observer
from sigd.daemon.admin.operations import Operations
from sigd.daemon.admin.server import AdminServer
from sigd.daemon.config.config import Config
from sigd.daemon.config.models import ModelConfig
from sigd.daemon.recording.recorder import start_recorder
from sigd.daemon.recording.tee import tee
from sigd.daemon.reload.reloader import Reloader
from sigd.daemon.reload.remembered import RememberedModels, place_of
from sigd.daemon.reload.validator import Validator
from sigd.daemon.runtime.child_process import Starter
from sigd.daemon.runtime.keep_warm import KeepWarm
from sigd.daemon.runtime.loader_thread import Loader
from sigd.daemon.runtime.logs import Overdue
from sigd.daemon.runtime.process import freeze_garbage, ignore_overflow, lock_memory
from sigd.daemon.runtime.sd_notify import Notifier
from sigd.daemon.runtime.text import as_utf8
from sigd.daemon.runtime.ticker import Ticker
from sigd.daemon.runtime.watchdog import LivenessCheck, Watchdog
from sigd.daemon.serving import native_fast_path, native_lane
from sigd.daemon.serving.batcher import Batcher
from sigd.daemon.serving.counters import ClientCounters, ModelCounters
from sigd.daemon.serving.models import ServedModels
from sigd.daemon.shadow.supervisor import Shadows
from sigd.daemon.transport.access_control import access_of
from sigd.daemon.transport.connections import Clients
from sigd.daemon.transport.lanes import TAPPED, Lanes, lane_warnings
from sigd.daemon.transport.listener import BACKLOG, Listener
from sigd.daemon.transport.rings import RingHost
from sigd.daemon.transport.socket_activation import ADMIN, CLIENTS, PassedListener
from sigd.models.backend import Backend
from sigd.models.errors import BackendFailed
from sigd.models.notes import how_steps_run

log = logging.getLogger(__name__)

_LAST_ANSWERS_S = 1.0


class Service:
    """One daemon, from open backends to its last answer."""

    def __init__(
        self,
        config: Config,
        backends: Sequence[Backend],
        notifier: Notifier,
        passed: Mapping[str, PassedListener],
        starter: Starter,
        validator: Validator | None = None,
        shadows: Shadows | None = None,
        remembered: RememberedModels | None = None,
    ) -> None:
        """
        Args:
            backends: those of `config.models()`, in their order.
            passed: sockets that are open already.
            starter: of processes beside the loop, where all work runs that is not the loop's.
            validator: of model files that are to be served later; it is closed at the end.
            shadows: of these models, open; they are closed at the end.
            remembered: what reloads said to serve, for the next start.
        """
        self._config = config
        self._backends = backends
        self._notifier = notifier
        self._passed = passed
        self._validator = validator
        self._starter = starter
        self._shadows = shadows or Shadows()
        self._remembered = remembered or RememberedModels(place_of(config.socket_path, {}))
        self._limits = config.limits()
        self._counters = ClientCounters()
        self._started_ns = monotonic_ns()
        self._stop = asyncio.Event()
        self._failure: BackendFailed | None = None

    @property
    def must_end_now(self) -> bool:
        """Whether the process may wait for nothing more: a device has failed, or a model is still being
        loaded."""
        return self._failure is not None or self._loader.busy

    async def run(self) -> int:
        """Serve until told to stop; the exit code.

        Raises:
            DaemonError: a socket cannot be opened.
        """
        loop = asyncio.get_running_loop()
        config = self._config
        ignore_overflow()
        rings, reloader, operations = self._assemble(loop)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, operations.hang_up)
        with (
            self._listener(CLIENTS, config.socket_path, config.socket_mode) as listener,
            self._listener(ADMIN, config.admin_socket_path, config.admin_socket_mode) as asked,
        ):
            admin = AdminServer(operations.ops, self._observer.pages)
            await admin.start(asked.socket)
            # create_unix_server() would on some versions of Python remove the file, which may not be ours.
            server = await loop.create_server(self._clients.accept, sock=listener.socket, backlog=BACKLOG)
            await self._observer.prepare()
            if config.lock_memory:
                lock_memory()
            freeze_garbage()
            self._observer.start()
            self._lanes.start()
            self._ticker.start()
            keep_warm = KeepWarm(loop, self._models, config.keep_warm_us / 1e6, self._die)
            keep_warm.start()
            overdue = Overdue(loop)
            overdue.start()
            watchdog = self._make_watchdog(loop)
            watchdog.start()
            self._say_ready()
            if not native_fast_path.is_built():
                log.info("%s", native_fast_path.NOT_BUILT)
            self._say_history()
            self._say_lanes()
            self._remembered.ready()
            # Held back since the start (daemon.commands.serve).
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
            await self._stop.wait()
            # The way here ends first: another daemon may take the place while this one drains.
            for end in (
                self._clients.refuse,
                reloader.stop,
                keep_warm.stop,
                overdue.stop,
                self._observer.stop,
                listener.remove,
                asked.remove,
                server.close,
                admin.close,
            ):
                end()
            self._notifier.stopping("draining", self._limits.drain_timeout_s + END_GRACE_S)
            await self._clients.drain()
            watchdog.stop()
        self._ticker.stop()
        rings.close()
        self._lanes.close()
        return await self._close(operations, admin)

    def _assemble(self, loop: asyncio.AbstractEventLoop) -> tuple[RingHost, Reloader, Operations]:
        """Everything that serves, from the models to the clients; nothing runs yet."""
        config = self._config
        self._recorder = start_recorder(config, loop, self._starter)
        self._shadows.watch(loop)
        if self._validator is not None:
            self._validator.watch(loop)
        self._lanes = Lanes(loop, config.lane_cpu, config.lane_spin_ns(), config.lane_realtime())
        self._models = ServedModels(list(map(self._make_batcher, config.models(), self._backends)))
        rings = RingHost(loop, monotonic_ns, lambda: self._ticker.wake(), self._counters, self._lanes)
        self._loader = Loader(loop, self._starter.cores)
        reloader = self._make_reloader()
        self._clients = Clients(
            self._models.find,
            access_of(config.access),
            self._limits,
            self._counters,
            rings.open if config.shared_memory else None,
        )
        self._ticker = self._make_ticker(loop, rings)
        self._models.on_change = lambda: self._ticker.set_polls(self._polls(rings))
        self._observer = Observer(
            loop,
            config,
            self._models,
            self._clients,
            self._counters,
            self._validator,
            self._recorder,
            self._shadows,
            self._starter.cores,
            self._remembered,
            self._lanes,
        )
        operations = Operations(
            self._models, reloader, self._status, self._stop.set, self._notifier.needs_time
        )
        return rings, reloader, operations

    async def _close(self, operations: Operations, admin: AdminServer) -> int:
        """Give everything back, once no client is served any more; the exit code."""
        # A device that is dead, or busy with what is being loaded, would keep the end waiting; it goes with
        # the process.
        if not self.must_end_now:
            self._models.close()
        if self._recorder is not None:
            self._recorder.close()
        self._shadows.close()
        if self._validator is not None:
            self._validator.close()
        exit_code = self._exit_code()
        operations.ended(exit_code)
        await admin.finish(_LAST_ANSWERS_S)
        return exit_code

    def _listener(self, name: str, path: Path, mode: str) -> Listener | PassedListener:
        return self._passed.get(name) or Listener(path, int(mode, 8))

    def _make_batcher(self, model: ModelConfig, backend: Backend, before: Batcher | None = None) -> Batcher:
        """`before`: the one whose place it takes."""
        limits = replace(
            self._limits,
            in_flight_max=model.in_flight_max,
            rows_pending_max=model.rows_pending_max,
            history_instruments_max=0 if model.history is None else model.history.instruments_max,
        )
        return Batcher(
            backend,
            ModelCounters(backend.batch_rows_max) if before is None else before.counters,
            monotonic_ns,
            wake=lambda: self._ticker.wake(),
            on_fatal=self._die,
            limits=limits,
            linger_ns=model.linger_us * 1000,
            taps=tee(
                None if self._recorder is None else self._recorder.taps, self._shadows.taps(backend.spec.name)
            ),
            generation=1 if before is None else before.generation + 1,
            digests=None if before is None else before.digests,
            on_swap=self._lanes.swapped,
        )

    def _make_reloader(self) -> Reloader:
        configs = {
            batcher.name: model for batcher, model in zip(self._models, self._config.models(), strict=True)
        }
        return Reloader(
            self._models,
            configs,
            self._validator,
            self._loader,
            lambda before, backend: self._make_batcher(configs[before.name], backend, before),
            self._die,
            self._limits.drain_timeout_s,
            self._remembered,
        )

    def _make_ticker(self, loop: asyncio.AbstractEventLoop, rings: RingHost) -> Ticker:
        return Ticker(
            loop,
            self._config.idle,
            self._polls(rings),
            self._models.last_batch_ns,
            monotonic_ns,
            self._config.backoff_spin_us * 1000,
            self._models.close_fast_path,
            rings.may_sleep,
        )

    def _polls(self, rings: RingHost) -> tuple[Callable[[], bool], ...]:
        """What the loop polls in each round: what has come is taken before a batch is filled."""
        return (rings.poll, self._clients.poll, *self._models.polls)

    def _make_watchdog(self, loop: asyncio.AbstractEventLoop) -> Watchdog:
        notifier = self._notifier
        liveness_check = LivenessCheck(monotonic_ns, rest_ns=notifier.watchdog_ns)
        return Watchdog(
            loop,
            notifier,
            liveness_check,
            self._ticker.interpose,
            lambda: self._models,
            self._line,
            lambda: self._lanes.stalled,
        )

    def _die(self, failure: BackendFailed) -> None:
        self._failure = failure
        self._stop.set()

    def _exit_code(self) -> int:
        """0 where everything accepted was answered."""
        if self._failure is not None:
            log.critical("stopped: the model's device failed and cannot be used any more: %s", self._failure)
            return 1
        if pending_rows := self._models.pending_rows:
            log.error("%d requests were not answered within %g s", pending_rows, self._limits.drain_timeout_s)
            return 1
        return 0

    # -- what is said

    def _say_ready(self) -> None:
        core = "" if self._config.cpu is None else f" cpu={self._config.cpu}"
        if self._config.lane_cpu:
            core += f" lanes={','.join(map(str, self._config.lane_cpu))}"
        metrics = f" metrics={self._observer.place}" if self._observer.place else ""
        line = (
            f"sigd ready: socket={as_utf8(self._config.socket_path)}"
            f"{''.join(map(_said_of, self._models))} idle={self._config.idle.value}{core}{metrics}"
        )
        try:
            print(line, flush=True)
        except OSError as error:
            log.warning("standard output cannot be written to: %s", error.strerror)
            # What is still buffered would fail once more at the exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        self._notifier.ready(self._line())

    def _say_history(self) -> None:
        for batcher in self._models:
            kept = batcher.spec.window or batcher.spec.state
            if kept is None:
                continue
            instruments = batcher.limits.history_instruments_max
            log.info(
                "model %s: the history of %d instruments takes %.1f MiB of each client that has it kept%s",
                batcher.name,
                instruments,
                kept.memory_bytes(instruments) / (1 << 20),
                "" if batcher.spec.window is None else f"; {how_steps_run(batcher.backend, instruments)}",
            )
            if self._shadows.status(batcher.name) is not None:
                log.warning(
                    "model %s: its shadow is not given the rows of clients whose history is kept",
                    batcher.name,
                )

    def _say_lanes(self) -> None:
        """What makes lanes useless or slow."""
        why_not = {
            as_utf8(batcher.name): native_lane.why_no_lane(batcher) or (TAPPED if batcher.is_tapped else "")
            for batcher in self._models
        }
        for warning in lane_warnings(self._config.lane_cpu, why_not):
            log.warning("%s", warning)

    def _line(self) -> str:
        return snapshot.line(self._models, self._counters)

    async def _status(self) -> Status:
        return await snapshot.take(
            self._config,
            self._started_ns,
            self._models,
            self._clients,
            self._counters,
            self._observer,
            self._recorder,
            self._shadows,
            self._remembered,
            self._lanes,
        )


def _said_of(batcher: Batcher) -> str:
    spec = batcher.spec
    return (
        f" model={as_utf8(batcher.name)} ({spec.request_values} -> {spec.answer_values})"
        f" sha256={spec.sha256.hex()[:16]} backend={batcher.backend.name}"
    )
