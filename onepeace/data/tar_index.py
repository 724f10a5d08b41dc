"""Index of a tar: for each sample where its members lie, so that any sample can be read on its own.

Headers alone are read. webdataset groups the members (KEY.jpg and KEY.txt are one sample); what is damaged is skipped
and named, and what follows it is found again.
"""

import tarfile
from collections.abc import Iterator
from typing import IO, Any

TarIndex = tuple[list[tuple[str, dict[str, tuple[int, int]]]], list[str]]
"""(key, {file ending: (offset, size)}) of each sample, and a line per damage and per member that cannot be used."""


def index_tar(file: IO[bytes], name: str) -> TarIndex:
    """Index an uncompressed tar; ``name`` begins the lines about what is broken."""
    from webdataset.tariterators import group_by_keys

    broken: list[str] = []

    def note(error: Exception) -> bool:
        broken.append(f"{name}: {next(iter(error.args), '') or type(error).__name__}")
        return True

    members: Any = (
        {"fname": member, "data": place, "__url__": name} for member, *place in _members(file, name, broken)
    )
    samples = [
        (group["__key__"], {ending: place for ending, place in group.items() if not ending.startswith("__")})
        for group in group_by_keys(members, handler=note)
    ]
    return [one for one in samples if one[1]], broken


def _members(file: IO[bytes], name: str, broken: list[str]) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of each regular file that is there as a whole."""
    last, end = "the beginning", file.seek(0)
    try:
        # Blocks that are no header, as those of a damage, are passed over as if they were empty.
        with tarfile.open(fileobj=file, mode="r:", ignore_zeros=True) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # its list would grow with the shard
                if member.offset > end:
                    broken.append(f"{name}: damaged after {last}, from byte {end} to {member.offset}")
                last, end = member.name, tar.offset
                file.seek(0, 2)
                if member.offset_data + member.size > file.tell():
                    broken.append(f"{name}: unexpected end of data")
                    return
                if member.isreg():
                    yield member.name, member.offset_data, member.size
            file.seek(end)
            if any(file.read()):
                broken.append(f"{name}: damaged after {last}, from byte {end} to its end")
    except tarfile.TarError as error:
        broken.append(f"{name}: {error}")
