"""Who may connect: the rule and the kernel's word on who a peer is."""

from __future__ import annotations

import grp
import os
import pwd
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sigd.daemon.config.access import AccessConfig
from sigd.daemon.config.config import load_config
from sigd.daemon.errors import UsageError
from sigd.daemon.transport.access_control import Access, Credentials, access_of, credentials_of, peer_groups

OUTSIDER = Credentials(pid=1, uid=4_000_000_001, gid=4_000_000_002)


@pytest.fixture
def pair() -> Iterator[socket.socket]:
    """A connected socket whose peer is this process."""
    here, there = socket.socketpair(socket.AF_UNIX)
    with here, there:
        yield here


def test_the_kernel_says_who_the_peer_is(pair: socket.socket) -> None:
    assert credentials_of(pair) == (os.getpid(), os.geteuid(), os.getegid())
    assert peer_groups(pair.fileno()) == set(os.getgroups())


def test_where_the_kernel_does_not_tell_the_groups_there_are_none() -> None:
    reading, writing = os.pipe()
    assert peer_groups(reading) == frozenset()
    os.close(reading)
    os.close(writing)


def test_without_a_rule_every_user_is_let_in(pair: socket.socket) -> None:
    access = access_of(AccessConfig())
    assert access.admits(OUTSIDER, pair.fileno())
    assert access.expected == ""


def test_names_are_looked_up() -> None:
    user, group = pwd.getpwuid(0).pw_name, grp.getgrgid(0).gr_name
    access = access_of(AccessConfig(users=(user, 1234), groups=(group, 0, 99)))
    assert access.users == {0, 1234, os.geteuid()}
    assert access.groups == {0, 99}
    assert access.expected == f"user {user},1234 or group {group},0,99"


@pytest.mark.parametrize(
    ("config", "peer", "admitted"),
    [
        (AccessConfig(users=(OUTSIDER.uid,)), OUTSIDER, True),
        (AccessConfig(groups=(OUTSIDER.gid,)), OUTSIDER, True),
        (AccessConfig(users=(5,), groups=(OUTSIDER.gid,)), OUTSIDER, True),
        (AccessConfig(users=(OUTSIDER.gid,)), OUTSIDER, False),
        (AccessConfig(groups=(OUTSIDER.uid,)), OUTSIDER, False),
        (AccessConfig(users=(5,)), OUTSIDER._replace(uid=0), True),
        (AccessConfig(groups=(5,)), OUTSIDER._replace(uid=os.geteuid()), True),
    ],
    ids=["user", "group", "one of both", "another user", "another group", "root", "the daemon's own user"],
)
def test_who_is_let_in(pair: socket.socket, config: AccessConfig, peer: Credentials, admitted: bool) -> None:
    assert access_of(config).admits(peer, pair.fileno()) is admitted


def test_a_supplementary_group_is_as_good_as_the_primary(pair: socket.socket) -> None:
    groups = peer_groups(pair.fileno())
    for group in groups:
        assert Access(frozenset(), frozenset({group}), "x").admits(OUTSIDER, pair.fileno())
    others = frozenset({4_000_000_000}) - groups
    assert not Access(frozenset(), others, "x").admits(OUTSIDER, pair.fileno())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[access]\nusers = ['no-such-user']", ["access.users", "'no-such-user'", "a number without quotes"]),
        ("[access]\ngroups = ['1000000']", ["access.groups", "'1000000'", "a number without quotes"]),
        ("[access]\nusers = [-1]", [">= 0", "$.access.users"]),
        ("[access]\nusers = [4294967295]", ["<= 4294967294"]),
        ("[access]\nusers = [true]", ["bool"]),
        ("[access]\nusers = ['']", [">= 1"]),
        ("[access]\nusers = 'root'", ["array", "str"]),
        ("[access]\nuser = []", ["unknown field `user`", "known names are: users, groups"]),
        ("access = 'all'", ["object", "str"]),
    ],
)
def test_a_rule_that_cannot_be_is_refused_by_name(tmp_path: Path, text: str, said: list[str]) -> None:
    file = tmp_path / "sigd.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_config(file, {})
    for part in (str(file), *said):
        assert part in str(caught.value)
