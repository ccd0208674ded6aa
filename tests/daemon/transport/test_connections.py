"""Who gets one of the places: bounds for all and for one user, and silence that holds none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvloop

from sigd.daemon.config.access import AccessConfig
from sigd.daemon.config.limits import Limits
from sigd.daemon.serving.counters import ClientCounters
from sigd.daemon.transport import connections as clients
from sigd.daemon.transport import stream
from sigd.daemon.transport.access_control import Credentials, access_of
from sigd.daemon.transport.connections import Clients
from sigd.wire.messages import Hello, Reject
from sigd.wire.status import RejectCode

if TYPE_CHECKING:
    from tests.daemon.conftest import Rig

WELCOME_BYTES = 128
ALICE, BOB = 4_000_000_001, 4_000_000_002


class Place:
    """Where clients of any user connect, whatever user the test runs as."""

    def __init__(self, path: str, rig: Rig, limits: Limits, access: AccessConfig) -> None:
        self.path = path
        self.uid = ALICE
        self.counters = ClientCounters()
        self.writers: list[asyncio.StreamWriter] = []
        self.clients = Clients(rig.find_model, access_of(access), limits, self.counters, None)

    async def silent(self, uid: int) -> asyncio.StreamReader:
        """A connection of that user which says nothing."""
        return (await self._connect(uid))[0]

    async def hello(self, uid: int, hello: Hello | None = None) -> asyncio.StreamReader:
        """One that says Hello, and has got its answer."""
        reader, writer = await self._connect(uid)
        writer.write((hello or Hello()).encode())
        return reader

    async def everybody_leaves(self) -> None:
        for writer in self.writers:
            writer.close()
        while self.counters.connections_open:
            await asyncio.sleep(0)

    async def _connect(self, uid: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.uid = uid
        before = self.counters.connections_accepted
        reader, writer = await asyncio.open_unix_connection(self.path)
        while self.counters.connections_accepted == before:
            await asyncio.sleep(0)
        self.writers.append(writer)
        return reader, writer


async def served(reader: asyncio.StreamReader) -> bool:
    """Whether its Hello was answered with a Welcome."""
    return len(await reader.readexactly(80)) == 80 and len(await reader.readexactly(WELCOME_BYTES - 80)) == 48


async def reject(reader: asyncio.StreamReader) -> Reject:
    """What it was refused with; nothing comes after."""
    said = await reader.read()
    assert len(said) == 80
    return Reject.decode(said[8:])


@pytest.fixture
def play(make_rig: type[Rig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Plays a scene: (scene, access=..., **bounds)."""

    def run(
        scene: Callable[[Place], Awaitable[None]], access: AccessConfig | None = None, **bounds: float
    ) -> None:
        place = Place(str(tmp_path / "s"), make_rig(), replace(Limits(), **bounds), access or AccessConfig())  # type: ignore[arg-type]
        monkeypatch.setattr(stream, "credentials_of", lambda _: Credentials(77, place.uid, place.uid))

        async def main() -> None:
            server = await asyncio.get_running_loop().create_unix_server(place.clients.accept, place.path)
            try:
                async with asyncio.timeout(60):
                    await scene(place)
            finally:
                await place.everybody_leaves()
                server.close()

        uvloop.run(main())

    return run


Play = Callable[..., None]


def test_one_too_many_of_a_user_is_told_so_and_others_are_served(
    play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(place: Place) -> None:
        kept = [await place.hello(ALICE) for _ in range(2)]
        for reader in kept:
            assert await served(reader)
        refused = await reject(await place.silent(ALICE))
        assert refused.code == RejectCode.TOO_MANY_CONNECTIONS
        assert refused.reason == f"2 clients of uid {ALICE} are served already"
        assert await served(await place.hello(BOB))
        assert place.counters.connections_open == 3

    play(scene, connections_per_user_max=2)
    assert f"process 77: TOO_MANY_CONNECTIONS (8): 2 clients of uid {ALICE}" in caplog.text


def test_reject_is_logged_with_user_process_client_and_reason(
    play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(place: Place) -> None:
        reader = await place.hello(ALICE, Hello(client_name="maker", model_name="none"))
        assert (await reject(reader)).code == RejectCode.UNKNOWN_MODEL

    play(scene)
    assert caplog.messages == [
        f"rejected client 'maker' of uid {ALICE}, process 77: UNKNOWN_MODEL (5): 'fake' is served, not 'none'"
    ]


def test_a_place_that_is_given_back_can_be_had_again(play: Play) -> None:
    async def scene(place: Place) -> None:
        for _ in range(20):
            reader = await place.hello(ALICE)
            assert await served(reader)
            await place.everybody_leaves()

    play(scene, connections_per_user_max=1, connections_max=1)


def test_silent_connection_makes_room_for_a_new_one(play: Play) -> None:
    async def scene(place: Place) -> None:
        talker = await place.hello(BOB)
        assert await served(talker)
        first, *others = [await place.silent(ALICE) for _ in range(3)]
        newcomer = await place.hello(BOB)
        assert await served(newcomer)
        told = await reject(first)
        assert told == Reject(
            RejectCode.TOO_MANY_CONNECTIONS, "its place was needed before its Hello came"
        ), "the oldest one goes"
        for _ in others:
            assert await served(await place.hello(BOB))
        refused = await reject(await place.silent(BOB))
        assert refused.reason == "4 clients are served already", "who has said Hello makes no room"
        assert place.counters.connections_open == 4

    play(scene, connections_max=4)


def test_the_silence_of_one_user_makes_room_for_its_own(play: Play) -> None:
    async def scene(place: Place) -> None:
        other = await place.silent(BOB)
        first, second = [await place.silent(ALICE) for _ in range(2)]
        assert await served(await place.hello(ALICE))
        assert (await reject(first)).code == RejectCode.TOO_MANY_CONNECTIONS
        assert await served(await place.hello(ALICE))
        assert (await reject(second)).code == RejectCode.TOO_MANY_CONNECTIONS
        assert place.counters.connections_open == 3
        assert not other.at_eof(), "another user's is left alone"

    play(scene, connections_per_user_max=2)


def test_silent_crowd_locks_no_client_out(play: Play) -> None:
    async def scene(place: Place) -> None:
        crowd = [await place.silent(ALICE) for _ in range(300)]
        for uid in (ALICE, BOB):
            assert await served(await place.hello(uid))
        crowd += [await place.silent(ALICE) for _ in range(100)]
        assert await served(await place.hello(BOB))
        assert place.counters.connections_open <= 100

    play(scene, connections_max=100, connections_per_user_max=90)


def test_refused_client_takes_no_place_and_evicts_no_other(play: Play) -> None:
    async def scene(place: Place) -> None:
        silent = await place.silent(ALICE)
        for _ in range(20):
            refused = await reject(await place.silent(BOB))
            assert refused.code == RejectCode.NOT_AUTHORISED
            assert refused.reason == f"uid {BOB} refused; expected user {ALICE} or group 7"
        assert place.counters.connections_open == 1
        assert place.counters.rejects[RejectCode.NOT_AUTHORISED] == 20
        while place.counters.user_rejects.total() < 20:
            await asyncio.sleep(0)
        assert place.counters.user_rejects == {(RejectCode.NOT_AUTHORISED, BOB): 20}
        assert not silent.at_eof()

    play(scene, AccessConfig(users=(ALICE,), groups=(7,)), connections_max=1)


def test_a_long_rule_is_cut_for_the_client_and_whole_in_the_log(
    play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(place: Place) -> None:
        refused = await reject(await place.silent(BOB))
        assert refused.reason == f"uid {BOB} refused; expected user 1000000,1000001,1000002..."

    play(scene, AccessConfig(users=tuple(range(1_000_000, 1_000_020))))
    assert "1000019" in caplog.text


def test_a_connection_without_memory_ends_and_the_next_is_served(
    play: Play, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error that left the accepting of one connection would be the last that uvloop accepts."""

    def none_left(*_: object) -> None:
        raise MemoryError

    async def scene(place: Place) -> None:
        before = await place.hello(ALICE)
        assert await served(before)
        with monkeypatch.context() as patched:
            patched.setattr(clients, "Session", none_left)
            for _ in range(3):
                reader, writer = await asyncio.open_unix_connection(place.path)
                assert await reader.read() == b""
                writer.close()
        assert await served(await place.hello(ALICE))
        assert not before.at_eof()
        assert place.counters.connections_open == 2

    play(scene)
    assert "no memory for another connection" in caplog.text
