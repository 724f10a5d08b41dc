"""Writer of webdataset shards in the form that shards.py reads.

Equal samples yield equal bytes: members have no time and no owner. Shards get their names when all are written; after
an error or Ctrl-C, no new shard is left and older ones are untouched.
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
"""End of a shard's name, after the prefix; older shards may be compressed."""
NAME_BYTES = 100
"""Maximum length of a member's name in webdataset's tar format."""


class ShardWriter:
    """Context manager that writes samples to FOLDER/PREFIX-00000.tar, -00001.tar, ... in the order given.

    On success its shards replace all older ones of this folder and prefix, unless no sample was written.

    Args:
        max_bytes: maximum size of the media in a shard.

    Raises:
        UserError: a file or the folder cannot be written (with the shards' path and the system's reason).
    """

    def __init__(self, folder: Path, prefix: str, *, max_bytes: int = 100_000_000) -> None:
        self.folder, self.prefix, self.max_bytes = folder, prefix, max_bytes
        self.count = 0
        """Number of samples written."""
        self.paths: list[Path] = []
        """Paths of the shards, after success."""
        self._keys: set[str] = set()
        self._bytes = 0

    def __str__(self) -> str:
        """Summary of the shards, after success."""
        size = sum(path.stat().st_size for path in self.paths)
        return f"{self.folder / self.prefix}-*.tar: {self.count} samples, {size} bytes in {len(self.paths)} shards"

    def older(self) -> list[Path]:
        """Existing shards of this folder and prefix."""
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
        """Add a sample; returns False and adds nothing if an earlier sample has its key.

        Args:
            key: key without dot and slash: in webdataset, the part after the first dot is the kind of the member.
            media: encoded bytes by file ending without the dot ("jpg", "ogg"); a second picture is "2.jpg".
            captions: captions for KEY.json; one, chosen by the key, is also KEY.txt. May be empty.
            targets: targets for KEY.json, "label" as a separate field, others in the field "targets"; the bytes of
                "mask" become KEY.mask.png.
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
            options = {"maxcount": sys.maxsize, "maxsize": math.inf, "user": "", "group": "", "mtime": 0}
            self._shards = webdataset.ShardWriter(pattern, verbose=0, encoder=False, **options)
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
