"""webdataset shards from samples in memory: the writer for what shards.py reads.

The same samples give the same bytes: members carry no time and no owner. A shard has its name only when all of them are
written; an error, or Ctrl-C, leaves nothing behind, and what was there before as it was.
"""

import hashlib
import json
import math
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from onepeace.data.shards import MASK
from onepeace.errors import UserError

SHARD = re.compile(r"-\d{5,}\.tar(\.gz)?")
"""End of the name of a shard, behind the prefix; older ones may be compressed."""
NAME_BYTES = 100
"""Longest name of a member; the plain tar format of webdataset has no room for more."""


class ShardWriter:
    """Writes samples to FOLDER/PREFIX-00000.tar, -00001.tar, ... in the order given; a context manager.

    When it ends well, its shards take the place of all older ones of this folder and prefix. If no sample was written,
    these stay.

    Args:
        max_bytes: a new shard begins before one would hold more bytes of media than this.

    Raises:
        UserError: a file or the folder cannot be written (names it, and the system's reason).
    """

    def __init__(self, folder: Path, prefix: str, *, max_bytes: int = 100_000_000) -> None:
        self.folder, self.prefix, self.max_bytes = folder, prefix, max_bytes
        self.count = 0
        """Samples written."""
        self.paths: list[Path] = []
        """The shards, when it has ended well."""
        self._keys: set[str] = set()
        self._bytes = 0

    def __str__(self) -> str:
        """Summary of what has been written, when it ended well."""
        size = sum(path.stat().st_size for path in self.paths)
        return f"{self.folder / self.prefix}-*.tar: {self.count} samples, {size} bytes in {len(self.paths)} shards"

    def older(self) -> list[Path]:
        """Shards of this folder and prefix that are there now."""
        paths = sorted(self.folder.glob(f"{self.prefix}-*"))
        return [path for path in paths if SHARD.fullmatch(path.name.removeprefix(self.prefix))]

    def write(
        self,
        key: str,
        media: Mapping[str, bytes],
        captions: Sequence[str],
        *,
        targets: Mapping[str, Any] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> bool:
        """Add one sample; False if an earlier one has its key, and this one is left out.

        Args:
            key: no dot, no slash: webdataset takes what follows the first dot for the kind of a member.
            media: encoded bytes by file ending, without the dot ("jpg", "ogg"); a second picture is "2.jpg".
            captions: go into KEY.json; one, which depends on the key alone, is KEY.txt. May be empty.
            targets: go into KEY.json: "label" as a field of its own, others as the field "targets"; but the bytes of a
                "mask" are KEY.mask.png.
            about: further fields of KEY.json.
        """
        others = dict(targets or {})
        if "mask" in others:
            media = {**media, MASK: others.pop("mask")}
        room = NAME_BYTES - 1 - max(map(len, ("json", *media)))
        if "." in key or "/" in key or len(key.encode()) > room:
            raise ValueError(f"{key!r}: a key has no dot, no slash and at most {room} bytes")
        if key in self._keys:
            return False
        self._keys.add(key)
        size = sum(map(len, media.values()))
        fields = {"captions": list(captions), "label": others.pop("label", None), **(about or {})}
        if others:
            fields["targets"] = others
        members: dict[str, Any] = {**media, "json": json.dumps(fields, ensure_ascii=False).encode()}
        if captions:
            pick = int(hashlib.md5(key.encode(), usedforsecurity=False).hexdigest(), 16) % len(captions)
            members["txt"] = captions[pick].encode()
        with self._naming_errors():
            if self._bytes and self._bytes + size > self.max_bytes:
                self._shards.next_stream()
                self._bytes = 0
            self._shards.write({"__key__": key, **members})
        self._bytes += size
        self.count += 1
        return True

    def __enter__(self) -> "ShardWriter":
        import webdataset

        with self._naming_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._unfinished = tempfile.TemporaryDirectory(dir=self.folder, prefix=".shards-")
            pattern = f"{self._unfinished.name}/{self.prefix}".replace("%", "%%") + "-%05d.tar"
            same = {"user": "", "group": "", "mtime": 0}
            unlimited = {"maxcount": sys.maxsize, "maxsize": math.inf}
            self._shards = webdataset.ShardWriter(pattern, verbose=0, encoder=False, **unlimited, **same)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._unfinished:
            if kind is not None:
                with suppress(OSError):
                    self._shards.close()
                return
            with self._naming_errors():
                self._shards.close()
                if self.count:
                    older, written = self.older(), sorted(Path(self._unfinished.name).iterdir())
                    self.paths = [path.replace(self.folder / path.name) for path in written]
                    for path in {*older} - {*self.paths}:
                        path.unlink()

    @contextmanager
    def _naming_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.folder / self.prefix}-*.tar: cannot be written ({error.strerror or error})"
            ) from error
