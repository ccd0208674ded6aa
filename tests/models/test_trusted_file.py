"""Files that decide what is served: who could change them, and what fixes that."""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import onnx
import pytest

from sigd.models import trusted_file
from sigd.models.errors import ModelRefused
from sigd.models.onnx.file import read_onnx
from sigd.models.trusted_file import FileNotTrusted, read_file

if TYPE_CHECKING:
    from tests.conftest import ModelMaker

OTHER_USER = 4_000_001
CONTENT = b"a model"


@pytest.fixture
def demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that serves, where no group is anybody's own."""
    monkeypatch.setattr(trusted_file._demand, "made", True)
    monkeypatch.setattr(grp, "getgrgid", lambda gid: (_ for _ in ()).throw(KeyError(gid)))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file two folders down, none of which others may write to."""
    path = tmp_path / "outer" / "inner" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    path.chmod(0o644)
    for folder in (path.parent, path.parent.parent):
        folder.chmod(0o755)
    return path


def refused(path: Path) -> str:
    with pytest.raises(FileNotTrusted) as caught:
        read_file(path)
    return str(caught.value)


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Make it another user's; the user who is to own it instead."""
    if os.geteuid() == 0:
        os.chown(path, OTHER_USER, -1)
        return 0
    monkeypatch.setattr(os, "geteuid", lambda: OTHER_USER)
    return OTHER_USER


@pytest.mark.usefixtures("demanded")
def test_what_only_its_owner_may_write_to_is_read(file: Path) -> None:
    assert read_file(file) == CONTENT
    file.chmod(0o400)
    assert read_file(file) == CONTENT


@pytest.mark.parametrize("mode", [0o666, 0o664])
def test_a_command_that_only_looks_reads_anything(file: Path, mode: int) -> None:
    file.chmod(mode)
    file.parent.chmod(0o777)
    assert read_file(file) == CONTENT


@pytest.mark.usefixtures("demanded")
@pytest.mark.parametrize("place", ["model.onnx", ".", ".."])
@pytest.mark.parametrize(("mode", "who"), [(0o664, "g"), (0o646, "o"), (0o666, "go")])
def test_what_others_may_write_to_is_refused_with_what_fixes_it(
    file: Path, place: str, mode: int, who: str
) -> None:
    target = file.parent.joinpath(place).resolve()
    target.chmod(mode | (0o111 if target.is_dir() else 0))
    said = refused(file)
    assert said.startswith(f"{file}: decides what is served, and others can change it: {target} has mode")
    assert f"{target.stat().st_mode & 0o7777:04o} and group {target.stat().st_gid}" in said
    _, _, advice = said.partition(": chmod ")
    command, _, rest = advice.partition(";")
    assert rest == " or serve with --allow-insecure-files"
    assert command == f"{who}-w {target}"
    subprocess.run(["chmod", *shlex.split(command)], check=True)
    assert read_file(file) == CONTENT


@pytest.mark.usefixtures("demanded")
def test_a_folder_that_all_may_write_with_the_sticky_bit_is_as_good_as_tmp(file: Path) -> None:
    for folder in (file.parent, file.parent.parent):
        folder.chmod(0o1777)
    assert read_file(file) == CONTENT
    file.chmod(0o1666)
    assert "chmod go-w" in refused(file), "on a file the bit means nothing"


@pytest.mark.usefixtures("demanded")
@pytest.mark.parametrize("place", ["model.onnx", "."])
@pytest.mark.parametrize("mode", [0o755, 0o1777])
def test_what_belongs_to_another_user_is_refused(
    file: Path, place: str, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = file.parent.joinpath(place).resolve()
    target.chmod(mode)
    owner = give_away(target, monkeypatch)
    if owner == 0:
        said = refused(file)
        assert f"{target} belongs to user {OTHER_USER}, expected root or user 0: chown 0 {target}" in said
    else:
        assert f"expected root or user {OTHER_USER}: chown {OTHER_USER} " in refused(file)


@pytest.mark.usefixtures("demanded")
def test_owner_of_a_link_is_checked_too(file: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (tmp_path / "direct.onnx").symlink_to(file)
    assert read_file(tmp_path / "direct.onnx") == CONTENT
    (shared / "current").symlink_to(Path("..") / "outer" / "inner")
    (tmp_path / "link.onnx").symlink_to(shared / "current" / "model.onnx")
    assert read_file(tmp_path / "link.onnx") == CONTENT
    shared.chmod(0o777)
    assert f"{shared} has mode 0777" in refused(tmp_path / "link.onnx")
    assert f"{shared} has mode 0777" in refused(shared / "current" / "model.onnx")
    assert f"{shared} has mode 0777" in refused(shared / "current" / ".." / "inner" / "model.onnx")


@pytest.mark.usefixtures("demanded")
def test_a_path_from_here_is_followed_from_the_root(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    assert read_file(Path("model.onnx")) == CONTENT
    file.parent.parent.chmod(0o777)
    assert f"{file.parent.parent} has mode 0777" in refused(Path("model.onnx"))


@pytest.mark.usefixtures("demanded")
def test_a_file_that_is_replaced_while_it_is_opened(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was opened is not what has its name by then: the open file is what counts."""
    directories = trusted_file.directories_of

    def replaced_meanwhile(path: Path) -> Iterator[Path]:
        other = path.with_name("other")
        other.write_bytes(b"another model")
        other.replace(path)
        return directories(path)

    monkeypatch.setattr(trusted_file, "directories_of", replaced_meanwhile)
    assert "was replaced while it was opened" in refused(file)


@pytest.mark.usefixtures("demanded")
def test_permissions_are_those_of_the_file_that_was_opened(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A good file that takes the place of a bad one after the opening does not make up for it."""
    file.chmod(0o666)
    fstat = os.fstat

    def replaced_meanwhile(descriptor: int) -> os.stat_result:
        good = file.with_name("good")
        good.write_bytes(CONTENT)
        good.chmod(0o644)
        good.replace(file)
        return fstat(descriptor)

    monkeypatch.setattr(os, "fstat", replaced_meanwhile)
    assert "has mode 0666" in refused(file)


@pytest.mark.parametrize(
    ("group_name", "members", "acl", "trusted"),
    [
        ("me", [], False, True),
        ("me", ["me"], False, True),
        ("me", ["me", "you"], False, False),
        ("staff", [], False, False),
        ("me", [], True, False),
    ],
    ids=["its own", "its own and named", "another member", "another name", "an access list"],
)
def test_a_group_that_is_its_owners_own(
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    group_name: str,
    members: list[str],
    acl: bool,
    trusted: bool,
) -> None:
    """Where every user has a group of his own, files are made writable by the group."""
    monkeypatch.setattr(trusted_file._demand, "made", True)
    gid = file.stat().st_gid
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_name="me", pw_gid=gid))
    group = SimpleNamespace(gr_name=group_name, gr_gid=gid, gr_mem=members)
    monkeypatch.setattr(grp, "getgrgid", lambda gid: group)
    if acl:
        monkeypatch.setattr(os, "getxattr", lambda path, name: b"")
    file.chmod(0o664)
    if trusted:
        assert read_file(file) == CONTENT
    else:
        assert "chmod g-w" in refused(file)


@pytest.mark.usefixtures("demanded")
def test_what_was_installed_with_the_code_is_trusted_as_the_code_is(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.chmod(0o666)
    refused(file)
    monkeypatch.setattr(trusted_file, "SHIPPED", file.parent)
    assert read_file(file) == CONTENT


@pytest.mark.parametrize("what", ["fifo", "device", "socket", "folder"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, what: str) -> None:
    path = tmp_path / "m.onnx"
    if what == "fifo":
        os.mkfifo(path)
    elif what == "device":
        path = Path("/dev/zero")
    elif what == "folder":
        path = tmp_path
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    with pytest.raises(ModelRefused, match=r"regular file|a directory|No such device"):
        read_onnx(path)


@pytest.mark.usefixtures("demanded")
def test_files_of_weights_are_looked_at_too(models: ModelMaker, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(onnx.load(models.mlp()), path, save_as_external_data=True, location="weights", size_threshold=0)
    path.chmod(0o644)
    (tmp_path / "weights").chmod(0o644)
    read_onnx(path)
    (tmp_path / "weights").chmod(0o666)
    with pytest.raises(FileNotTrusted, match="weights has mode 0666"):
        read_onnx(path)
