"""Index of a tar: for each sample where its members lie, so that any sample can be read on its own.

Headers alone are read. webdataset groups the members (KEY.jpg and KEY.txt are one sample); what is damaged is skipped
and named, and what follows it is found again.
"""

import os
import re
import tarfile
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

BLOCK = tarfile.BLOCKSIZE
_META = re.compile(r"__[^/]*__($|/)")


class TarIndex(NamedTuple):
    """Samples of a tar in its order, in plain lists and dictionaries, as JSON holds them."""

    samples: list[tuple[str, dict[str, tuple[int, int]]]]
    """(key, {file ending: (offset, size)})."""
    broken: list[str]
    """One line per damage and per member that cannot be used."""


def index_tar(file: IO[bytes], name: str) -> TarIndex:
    """Index an uncompressed tar; ``name`` begins the lines about what is broken."""
    from webdataset.tariterators import group_by_keys

    broken: list[str] = []

    def note(error: Exception) -> bool:
        broken.append(f"{name}: {next(iter(error.args), '') or type(error).__name__}")
        return True

    members: Any = (
        {"fname": member, "data": place, "__url__": name}
        for member, *place in _members(file, name, broken)
        if not _META.match(member)
    )
    groups = list(group_by_keys(members, handler=note))
    samples = [
        (group["__key__"], {ending: place for ending, place in group.items() if not ending.startswith("__")})
        for group in groups
    ]
    return TarIndex([one for one in samples if one[1]], broken)


def _members(file: IO[bytes], name: str, broken: list[str]) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of each regular file that is there as a whole."""
    size, offset, last = os.fstat(file.fileno()).st_size, 0, "the beginning"
    while offset < size:
        header = os.pread(file.fileno(), BLOCK, offset)
        if not header.strip(b"\0") and not os.pread(file.fileno(), BLOCK, offset + BLOCK).strip(b"\0"):
            return  # two empty blocks are the end
        member = _plain_member(header, offset) or _other_member(file, offset)
        if member is None:
            broken.append(f"{name}: damaged after {last}, from byte {offset} to its end")
            return
        start, fname, place, length, regular = member
        if start > offset:
            broken.append(f"{name}: damaged after {last}, from byte {offset} to {start}")
        if place + length > size:
            broken.append(f"{name}: unexpected end of data")
            return
        if regular:
            yield fname, place, length
        last, offset = fname, place + -(-length // BLOCK) * BLOCK


def _plain_member(header: bytes, offset: int) -> tuple[int, str, int, int, bool] | None:
    """(offset, name, offset of the data, size, True) of a common header; None for all others.

    tarfile reads every kind of header, and takes 20 times as long for it.
    """
    if header[257:262] != b"ustar" or header[156:157] not in b"0\0" or len(header) < BLOCK:
        return None
    try:
        size, checksum = (int(field.strip(b" \0"), 8) for field in (header[124:136], header[148:156]))
    except ValueError:
        return None
    if sum(header) - sum(header[148:156]) + 8 * 0x20 != checksum:
        return None
    prefix = header[345:500].partition(b"\0")[0] if header[262:263] == b"\0" else b""
    path = b"/".join(part for part in (prefix, header[:100].partition(b"\0")[0]) if part)
    return offset, path.decode("utf-8", "surrogateescape"), offset + BLOCK, size, True


def _other_member(file: IO[bytes], offset: int) -> tuple[int, str, int, int, bool] | None:
    """The next member of any kind from ``offset`` on, after whatever is damaged; None if there is none."""
    file.seek(offset)
    try:
        # Blocks that are no header are passed over, as if they were empty.
        with tarfile.open(fileobj=file, mode="r:", ignore_zeros=True) as tar:
            member = tar.firstmember  # type: ignore[attr-defined]
    except tarfile.TarError:
        return None
    return member and (member.offset, member.name, member.offset_data, member.size, member.isreg())
