"""A daemon that grants shared memory and has no model: it answers each request out of what the request says.

    python -P ring_peer.py SOCKET [spin|block]

One process with a thread for each client; the loop of a daemon is not what is tested with it, the rings are.
An answer holds what its request's sequence stands for. The requests of a client called "stress" must do so
too, see stress.cpp; one that does not ends the session with a Reject.
"""

from __future__ import annotations

import array
import fcntl
import mmap
import os
import select
import socket
import sys
import threading
import time

import numpy as np

from sigd.wire import fields
from sigd.wire.errors import FrameError
from sigd.wire.framer import Framer
from sigd.wire.layout import frame_dtype, header_word, response_frame_bytes
from sigd.wire.messages import Goodbye, Heartbeat, Hello, Reject, Welcome
from sigd.wire.region import region_layout
from sigd.wire.ring import Region
from sigd.wire.status import RejectCode, Transport

FEATURES, OUTPUTS = 11, 3
SLOTS = 64
_SLEEP_MS_MAX = 100  # the heartbeat in the region is due again
_LOOKS_PER_SOCKET_LOOK = 256


class Session:
    """One client, served until it goes."""

    def __init__(self, connection: socket.socket, *, block: bool) -> None:
        self._connection = connection
        self._block = block
        self._framer = Framer()
        self._open = True
        self._rows = np.zeros(SLOTS, frame_dtype(fields.SIGNAL_REQUEST, FEATURES))
        self._answers = np.zeros(SLOTS, frame_dtype(fields.SIGNAL_RESPONSE, outputs=OUTPUTS))
        frame_bytes = response_frame_bytes(OUTPUTS)
        self._answers.view(np.uint64).reshape(SLOTS, -1)[:, 0] = header_word(11, frame_bytes)
        self._pattern = np.arange(FEATURES, dtype=np.float32)

    def run(self) -> None:
        """Shake hands, then answer."""
        with self._connection:
            hello = self._hello()
            if hello is None:
                return
            self._strict = hello.client_name == "stress"
            self._grant(hello.ring_slots or SLOTS)
            self._connection.setblocking(False)
            try:
                self._serve()
            except FrameError as error:
                self._connection.send(Reject(error.code, error.reason).encode())
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client was killed
            finally:
                os.close(self._request_bell)
                os.close(self._response_bell)

    def _hello(self) -> Hello | None:
        while (frame := self._framer.next_frame()) is None:
            count = self._connection.recv_into(self._framer.writable())
            if count == 0:
                return None
            self._framer.arrived(count)
        return Hello.decode(frame.block)

    def _grant(self, slots: int) -> None:
        layout = region_layout(slots, FEATURES, OUTPUTS)
        memory = os.memfd_create("sigd-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(memory, layout.region_bytes)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        region = Region.create(memoryview(mmap.mmap(memory, layout.region_bytes)), layout)
        self._region = region
        self._requests, self._responses = region.requests_in(), region.responses_out()
        self._request_bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._response_bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        welcome = Welcome(
            features=FEATURES,
            outputs=OUTPUTS,
            in_flight_max=slots,
            model_generation=1,
            daemon_pid=os.getpid(),
            clock_ns=time.monotonic_ns(),
            model_sha256=bytes(32),
            model_name="pattern",
            transport=Transport.SHARED_MEMORY,
            ring_slots=slots,
            request_stride=layout.request_stride,
            response_stride=layout.response_stride,
        )
        passed = array.array("i", [memory, self._request_bell, self._response_bell])
        self._connection.sendmsg([welcome.encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
        os.close(memory)

    def _serve(self) -> None:
        watched = select.poll()
        watched.register(self._connection, select.POLLIN)
        watched.register(self._request_bell, select.POLLIN)
        looks = 0
        while self._open:
            if self._answer():
                continue
            looks += 1
            if not self._block:
                if looks % _LOOKS_PER_SOCKET_LOOK == 0:
                    self._beat_and_listen()
                continue
            if self._requests.may_sleep():
                watched.poll(_SLEEP_MS_MAX)
            self._requests.awake()
            try:
                os.eventfd_read(self._request_bell)
            except BlockingIOError:
                pass
            self._beat_and_listen()

    def _answer(self) -> int:
        """Answer what is in the ring, as far as there is room for answers; how many requests there were."""
        room = self._requests.ring_slots - (self._requests.taken - self._responses.published)
        room = min(room, self._responses.room())
        rows = self._requests.take(self._rows.data.cast("B"), room)
        if rows == 0:
            return 0
        requests, answers = self._rows[:rows], self._answers[:rows]
        base = (requests["sequence"] % 4096).astype(np.float32)
        if self._strict and not np.array_equal(requests["features"], base[:, np.newaxis] + self._pattern):
            raise FrameError(RejectCode.PROTOCOL_VIOLATION, "features are not those of the sequence")
        for name in ("sequence", "client_time_ns", "instrument_id"):
            answers[name] = requests[name]
        answers["outputs"] = base[:, np.newaxis] - self._pattern[:OUTPUTS]
        answers["batch_rows"] = rows
        if self._responses.publish(answers.data.cast("B")):
            os.eventfd_write(self._response_bell, 1)
        return rows

    def _beat_and_listen(self) -> None:
        self._region.daemon_heartbeat_ns = time.monotonic_ns()
        try:
            count = self._connection.recv_into(self._framer.writable())
        except BlockingIOError:
            return
        self._open = count > 0
        self._framer.arrived(count)
        while (frame := self._framer.next_frame()) is not None:
            if frame.header.template_id == fields.HEARTBEAT.template_id:
                self._connection.send(Heartbeat(time.monotonic_ns()).encode())
            elif frame.header.template_id == fields.GOODBYE.template_id:
                while self._answer():
                    pass
                self._connection.send(Goodbye().encode())
                self._open = False


def main() -> None:
    """Listen and serve until killed."""
    path, idle = sys.argv[1], sys.argv[2]
    sys.setswitchinterval(1e-4)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(64)
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        session = Session(connection, block=idle == "block")
        threading.Thread(target=session.run, daemon=True).start()


if __name__ == "__main__":
    main()
