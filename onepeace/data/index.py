"""Index of a tar: the keys of its samples, and where their members lie. Nothing of a member is read.

A sample is a group of members as in webdataset: KEY.jpg and KEY.json. Damaged parts of a tar are skipped and reported,
and reading resumes after them. An index is stored in a safetensors file, which all processes map into their memory.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

HEADER = "index"
"""Name of the entry with everything that is not an array, in the file's metadata."""


@dataclass(frozen=True, eq=False)
class TarIndex:
    """The N samples and M members of a tar."""

    layouts: list[list[str]]
    """Distinct lists of the file endings of a sample, e.g. ["jpg", "json"]."""
    layout_of: NDArray[np.uint32]
    """(N,): number of each sample's layout."""
    member_starts: NDArray[np.int64]
    """(N + 1,): number of each sample's first member; the last entry is M."""
    offsets: NDArray[np.int64]
    """(M,): first byte of each member's content."""
    sizes: NDArray[np.int64]
    """(M,): number of bytes of each member."""
    key_starts: NDArray[np.int64]
    """(N + 1,): first byte of each sample's key in ``key_bytes``."""
    key_bytes: NDArray[np.uint8]
    """All keys, one after another, in UTF-8."""
    damages: list[str]
    """A line for each damage and each member that cannot be used."""
    digest: int
    """63 bits of a hash of keys and layouts: equal for equal shards on different machines."""

    def __len__(self) -> int:
        return len(self.layout_of)

    def key(self, row: int) -> str:
        """Key of a sample."""
        start, end = self.key_starts[row : row + 2].tolist()
        return self.key_bytes[start:end].tobytes().decode("utf-8", "surrogateescape")

    def members(self, row: int) -> dict[str, tuple[int, int]]:
        """Offset and size of each member of a sample, by its file ending."""
        start, end = self.member_starts[row : row + 2].tolist()
        offsets = self.offsets[start:end].tolist()
        sizes = self.sizes[start:end].tolist()
        endings = self.layouts[self.layout_of[row]]
        return dict(zip(endings, zip(offsets, sizes, strict=True), strict=True))


ARRAYS = ("layout_of", "member_starts", "offsets", "sizes", "key_starts", "key_bytes")
"""Fields of an index that are stored as arrays."""


def write_index(path: Path, index: TarIndex) -> None:
    """Write an index; `read_index` reads it."""
    from safetensors.numpy import save

    header = {"layouts": index.layouts, "damages": index.damages, "digest": index.digest}
    arrays = {name: getattr(index, name) for name in ARRAYS}
    # Not synced to the disk, which would take longer than the rest: an index that is damaged is made again.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(save(arrays, metadata={HEADER: json.dumps(header)}))
    os.replace(temporary, path)


def read_index(path: Path) -> TarIndex:
    """Map an index into memory.

    Raises:
        FileNotFoundError: there is none; one that is damaged, or of another version, is removed.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:  # unlike "numpy", it does not copy
            fields: dict[str, Any] = json.loads(file.metadata()[HEADER])
            for name in ARRAYS:
                fields[name] = file.get_tensor(name).numpy()
        return TarIndex(**fields)
    except (SafetensorError, KeyError, TypeError) as error:
        path.unlink(missing_ok=True)
        raise FileNotFoundError(path) from error


def index_tar(file: IO[bytes], name: str) -> TarIndex:
    """Index an uncompressed tar.

    Args:
        file: the tar; unbuffered, so that only headers are read.
        name: name of the tar, with which the lines about damages begin.
    """
    from webdataset.tariterators import group_by_keys

    damages: list[str] = []

    def note(error: Exception) -> bool:
        reason = next(iter(error.args), "") or type(error).__name__
        damages.append(f"{name}: {reason}")
        return True

    samples = group_by_keys(_members(file, name, damages), handler=note)
    return _tar_index(samples, damages)


def _tar_index(samples: Iterable[dict[str, Any]], damages: list[str]) -> TarIndex:
    """Index of samples in webdataset's form, with (offset, size) in place of the data of members."""
    layout_numbers: dict[tuple[str, ...], int] = {}
    layout_of: list[int] = []
    member_counts: list[int] = []
    offsets: list[int] = []
    sizes: list[int] = []
    keys: list[bytes] = []
    for sample in samples:
        endings = tuple(ending for ending in sample if not ending.startswith("__"))
        number = layout_numbers.setdefault(endings, len(layout_numbers))
        layout_of.append(number)
        member_counts.append(len(endings))
        for ending in endings:
            offset, size = sample[ending]
            offsets.append(offset)
            sizes.append(size)
        keys.append(sample["__key__"].encode("utf-8", "surrogateescape"))
    layouts = [list(endings) for endings in layout_numbers]
    key_bytes = b"".join(keys)
    key_lengths = [len(key) for key in keys]
    content = json.dumps([layouts, layout_of, key_lengths]).encode() + key_bytes
    return TarIndex(
        layouts=layouts,
        layout_of=np.array(layout_of, np.uint32),
        member_starts=_starts(member_counts),
        offsets=np.array(offsets, np.int64),
        sizes=np.array(sizes, np.int64),
        key_starts=_starts(key_lengths),
        key_bytes=np.frombuffer(key_bytes, np.uint8),
        damages=damages,
        digest=digest_of(content),
    )


def digest_of(content: bytes) -> int:
    """63 bits of a hash, which fit an int64."""
    digest = hashlib.sha256(content).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _starts(lengths: list[int]) -> NDArray[np.int64]:
    """Start of each of several consecutive pieces, and the end of the last one."""
    return np.cumsum([0, *lengths], dtype=np.int64)


def _members(
    file: IO[bytes],
    name: str,
    damages: list[str],
) -> Iterator[dict[str, Any]]:
    """Each complete regular file in webdataset's form, with (offset, size) in place of its data."""
    tar_size = file.seek(0, os.SEEK_END)
    file.seek(0)
    end = 0
    last = "the beginning"
    try:
        # ignore_zeros skips blocks that are not headers, such as damaged ones.
        with tarfile.open(fileobj=file, mode="r:", ignore_zeros=True) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # this list would keep growing
                if not _is_zero(file, end, member.offset):
                    damages.append(f"{name}: damaged after {last}, from byte {end} to {member.offset}")
                last = member.name
                end = tar.offset
                if member.offset_data + member.size > tar_size:
                    damages.append(f"{name}: unexpected end of data")
                    return
                if member.isreg():
                    offset_and_size = (member.offset_data, member.size)
                    yield {"fname": member.name, "data": offset_and_size, "__url__": name}
            if not _is_zero(file, end, tar_size):
                damages.append(f"{name}: damaged after {last}, from byte {end} to {tar_size}")
    except tarfile.TarError as error:
        damages.append(f"{name}: {error}")


def _is_zero(file: IO[bytes], start: int, end: int) -> bool:
    """Whether there is nothing but zeros between two bytes of a file."""
    if end <= start:
        return True
    file.seek(start)
    return not any(file.read(end - start))
