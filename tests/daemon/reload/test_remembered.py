"""What a reload said to serve, from one start of the daemon to the next."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sigd.daemon.reload.remembered import STARTS_MAX, RememberedModels, place_of

OLD, NEW = Path("/models/old.onnx"), Path("/models/new.onnx")


def started(place: Path, configured: Path = OLD) -> tuple[RememberedModels, Path]:
    """A daemon that begins, and the file that it opens."""
    remembered = RememberedModels(place)
    remembered.load()
    return remembered, remembered.choose("lob", configured)


def test_place_is_the_state_directory_or_beside_the_socket() -> None:
    assert place_of(Path("/run/sigd/sigd.sock"), {}) == Path("/run/sigd/sigd.sock.served")
    place = place_of(Path("/run/sigd/lob.sock"), {"STATE_DIRECTORY": "/var/lib/sigd/lob:/var/lib/other"})
    assert place == Path("/var/lib/sigd/lob/served.json")


def test_next_start_serves_what_the_reload_said_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "served"
    remembered, path = started(place)
    assert path == OLD
    remembered.ready()
    assert not place.exists(), "nothing was told"
    assert "a restart serves it too" in remembered.remember("lob", NEW)
    for _ in range(2 * STARTS_MAX):
        remembered, path = started(place)
        assert path == NEW
        assert not remembered.as_configured("lob", path)
        remembered.ready()
    assert f"{NEW} is served, as `sigd reload` said at " in caplog.text
    assert f"and not {OLD} of the configuration" in caplog.text
    assert remembered.reverted == set()


def test_configured_file_ends_what_was_told(tmp_path: Path) -> None:
    place = tmp_path / "served"
    remembered, _ = started(place)
    remembered.remember("lob", NEW)
    assert remembered.remember("lob", OLD) == ""
    assert not place.exists()
    assert started(place)[1] == OLD


def test_edited_configuration_decides_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = tmp_path / "served"
    started(place)[0].remember("lob", NEW)
    newest = Path("/models/newest.onnx")
    assert started(place, newest)[1] == newest
    assert "the configuration names it now" in caplog.text
    assert not place.exists()


def test_file_that_ends_every_start_is_given_up_loudly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "served"
    started(place)[0].remember("lob", NEW)
    for _ in range(STARTS_MAX):
        assert started(place)[1] == NEW
    for _ in range(2):
        remembered, path = started(place)
        assert path == OLD
        assert remembered.reverted == {"lob"}
        remembered.ready()
        assert "THE OLD MODEL IS SERVED AGAIN" in caplog.text
        caplog.clear()
    remembered.remember("lob", NEW)
    assert remembered.reverted == set()
    assert started(place)[1] == NEW


@pytest.mark.parametrize("content", ["", "{", "[]", '{"lob": {"path": 1}}'])
def test_memory_that_cannot_be_read_counts_for_nothing(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "served").write_text(content)
    assert started(tmp_path / "served")[1] == OLD
    assert "cannot be read, and the configured models are served" in caplog.text


def test_folder_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    remembered, _ = started(tmp_path / "gone" / "served")
    assert remembered.remember("lob", NEW).startswith("NOT remembered (")


def test_memory_is_the_daemons_own_and_readable_for_people(tmp_path: Path) -> None:
    started(tmp_path / "served")[0].remember("lob", NEW)
    assert (tmp_path / "served").stat().st_mode & 0o777 == 0o600
    told = json.loads((tmp_path / "served").read_text())["lob"]
    assert (told["configured"], told["path"], told["starts"]) == (str(OLD), str(NEW), 0)
