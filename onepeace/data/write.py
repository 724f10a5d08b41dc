"""Writer of webdataset shards in the form that source.py reads.

Equal samples yield equal bytes: members have no time and no owner. Shards get their names when all are written; after
an error or Ctrl-C, no new shard is left and older ones are untouched. While new shards take the place of older ones,
the folder has a mark, ``.PREFIX.replacing``: if a kill leaves it, the shards are not read until they are written again.
"""

import hashlib
import json
import math
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from onepeace.data.sample import MASK
from onepeace.data.source import REPLACING
from onepeace.errors import UserError
from onepeace.files.atomic import held, is_held, sync

SHARD = re.compile(r"-\d{5,}\.tar(\.gz)?")
"""End of a shard's name, after the prefix; older shards may be compressed."""
UNFINISHED = ".onepeace-shards-"
"""Beginning of the name of the folder in which shards are written."""
TEXTS = ("json", "txt")
"""File endings of the members that are not media."""
NAME_BYTES = 100
"""Maximum length of a member's name in webdataset's tar format."""


@contextmanager
def new_shards(folder: Path, prefix: str, *, max_bytes: int = 100_000_000) -> Iterator["ShardWriter"]:
    """Context manager that writes samples to FOLDER/PREFIX-00000.tar, -00001.tar, ... in the order given.

    On success its shards replace all older ones of this folder and prefix, unless no sample was written.

    Args:
        max_bytes: maximum size of the media in a shard.

    Raises:
        UserError: a file or the folder cannot be written (with the shards' path and the system's reason).
    """
    import webdataset

    with ExitStack() as stack:
        with _naming(folder, prefix):
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(f"{UNFINISHED}*"):
                if is_held(leftover) is False:  # its process has ended
                    shutil.rmtree(leftover)
            unfinished = stack.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix=UNFINISHED))
            stack.enter_context(held(Path(unfinished)))
            shards = webdataset.ShardWriter(
                f"{unfinished}/{prefix}".replace("%", "%%") + "-%05d.tar",
                verbose=0,
                encoder=False,
                maxcount=sys.maxsize,
                maxsize=math.inf,
                user="",
                group="",
                mtime=0,
            )
        writer = ShardWriter(folder, prefix, shards, max_bytes)
        try:
            yield writer  # an error of the caller stays as it is
        except BaseException:
            with suppress(OSError):
                shards.close()
            raise
        with _naming(folder, prefix):
            shards.close()
            if writer.count:
                writer.paths = _replace_shards(folder, prefix, Path(unfinished))


def _replace_shards(folder: Path, prefix: str, unfinished: Path) -> list[Path]:
    """Remove older shards and move new ones to the folder, which has a mark meanwhile; returns the new paths."""
    names = sorted(path.name for path in unfinished.iterdir())
    for name in names:
        sync(unfinished / name)
    mark = folder / f".{prefix}{REPLACING}"
    mark.mkdir(exist_ok=True)
    sync(folder)
    for path in older_shards(folder, prefix):
        path.unlink()
    for name in names:
        (unfinished / name).rename(folder / name)
    sync(folder)
    mark.rmdir()
    return [folder / name for name in names]


def older_shards(folder: Path, prefix: str) -> list[Path]:
    """Existing shards of a folder and prefix."""
    return [path for path in sorted(folder.glob(f"{prefix}-*")) if SHARD.fullmatch(path.name.removeprefix(prefix))]


@contextmanager
def _naming(folder: Path, prefix: str) -> Iterator[None]:
    """Raise system errors as `UserError` with the path of the shards."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder / prefix}-*.tar: cannot be written ({error.strerror or error})") from error


class ShardWriter:
    """Writer of the samples of `new_shards`."""

    def __init__(self, folder: Path, prefix: str, shards: Any, max_bytes: int) -> None:
        self.folder = folder
        self.prefix = prefix
        self.max_bytes = max_bytes
        self.count = 0
        """Number of samples written."""
        self.paths: list[Path] = []
        """Paths of the shards, after success."""
        self._shards = shards
        self._keys: set[str] = set()
        self._bytes = 0

    def __str__(self) -> str:
        """Summary of the shards, after success."""
        size = sum(path.stat().st_size for path in self.paths)
        return f"{self.folder / self.prefix}-*.tar: {self.count} samples, {size} bytes in {len(self.paths)} shards"

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
        members = _members(media, captions, targets or {}, about or {}, key)
        _check_key(key, members)
        if key in self._keys:
            return False
        self._keys.add(key)
        size = sum(len(content) for name, content in members.items() if name not in TEXTS)
        with _naming(self.folder, self.prefix):
            if self._bytes and self._bytes + size > self.max_bytes:
                self._shards.next_stream()
                self._bytes = 0
            self._shards.write({"__key__": key, **members})
        self._bytes += size
        self.count += 1
        return True


def _check_key(key: str, members: Mapping[str, bytes]) -> None:
    longest_ending = max(len(name) for name in members)
    key_bytes = NAME_BYTES - len(".") - longest_ending
    if "." in key or "/" in key or len(key.encode()) > key_bytes:
        raise ValueError(f"{key!r}: a key has no dot, no slash and at most {key_bytes} bytes")


def _members(
    media: Mapping[str, bytes],
    captions: Sequence[str],
    targets: Mapping[str, Any],
    about: Mapping[str, Any],
    key: str,
) -> dict[str, bytes]:
    """The members of a sample by file ending, in the order in which they are written."""
    members = dict(media)
    if "mask" in targets:
        members[MASK] = targets["mask"]
    fields = {"captions": list(captions), "label": targets.get("label"), **about}
    in_json = {name: value for name, value in targets.items() if name not in ("label", "mask")}
    if in_json:
        fields["targets"] = in_json
    members["json"] = json.dumps(fields, ensure_ascii=False).encode()
    if captions:
        digest = hashlib.md5(key.encode(), usedforsecurity=False).hexdigest()
        members["txt"] = captions[int(digest, 16) % len(captions)].encode()
    return members
