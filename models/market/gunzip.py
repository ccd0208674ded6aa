"""Lines out of a gzip file, also where it is damaged: a collector that is killed leaves the end of its file
open."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final

_CHUNK_BYTES: Final = 1 << 16
_PIECE_BYTES: Final = 64
_GZIP: Final = 16 + zlib.MAX_WBITS
_MAGIC: Final = b"\x1f\x8b\x08"

OnDamage = Callable[[str], None]
"""Told what is wrong with the file where no more can be read; it may raise."""


def lines(file: BinaryIO, on_damage: OnDamage) -> Iterator[bytes]:
    """The lines of all members of a gzip file, without their line feeds. A last line that has none is a line
    too.

    Behind damage the next member is looked for: a collector that was started again after a crash appends to
    its file.
    """
    rest = b""
    for chunk in _chunks(file, on_damage):
        parts = (rest + chunk).split(b"\n")
        rest = parts.pop()
        yield from parts
    if rest:
        yield rest


def _chunks(file: BinaryIO, on_damage: OnDamage) -> Iterator[bytes]:
    raw = file.read(_CHUNK_BYTES)
    if not raw.startswith(_MAGIC):
        on_damage("not a gzip file; expected a gzip capture")
        return
    inflate = zlib.decompressobj(_GZIP)
    while raw:
        before = inflate.copy()
        try:
            data = inflate.decompress(raw)
        except zlib.error as error:
            yield _up_to_damage(before, raw)
            on_damage(f"the gzip stream is damaged ({error}): copy the file again")
            raw = _from_next_member(raw, file)
            if not raw:
                return
            inflate = zlib.decompressobj(_GZIP)
            continue
        if data:
            yield data
        raw = inflate.unused_data if inflate.eof else b""
        if inflate.eof and not (raw or (raw := file.read(_CHUNK_BYTES))).strip(b"\0"):
            # Padding is no member.
            return
        if inflate.eof:
            inflate = zlib.decompressobj(_GZIP)
        raw = raw or file.read(_CHUNK_BYTES)
    on_damage(
        "the gzip stream ends too soon: the file was cut short, copy it again, or its collector was killed"
    )


def _up_to_damage(inflate: zlib._Decompress, raw: bytes) -> bytes:
    """What can be read of a piece that is damaged somewhere."""
    data = b""
    try:
        for at in range(0, len(raw), _PIECE_BYTES):
            data += inflate.decompress(raw[at : at + _PIECE_BYTES])
    except zlib.error:
        pass
    return data


def _from_next_member(raw: bytes, file: BinaryIO) -> bytes:
    """What follows from the next beginning of a member on, the one that `raw` may begin with left out."""
    raw = raw[1:]
    while (at := raw.find(_MAGIC)) < 0:
        more = file.read(_CHUNK_BYTES)
        if not more:
            return b""
        raw = raw[-len(_MAGIC) + 1 :] + more
    return raw[at:]
