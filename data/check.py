#!/usr/bin/env python3
"""Check a folder of shards: nothing may be in both train/ and val/.

    python data/check.py ROOT

An error is: equal bytes of a picture or sound, an equal key, or an equal group in training and validation data; a
sample that lacks its media, caption or licence; a caption in KEY.txt that is not one of KEY.json. A group is what a set
is split by: the emoji's name, the drawing's title, the photograph on Flickr, the recording or video a sound was cut
from. With --near BITS, validation photographs that look like a training one are counted too (they need not be errors).
Exit code 1 when there is an error.
"""

import argparse
import hashlib
import json
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))
from shardwriter import difference_hash, open_picture

from onepeace.errors import UserError

MEDIA = frozenset({"jpg", "jpeg", "png", "webp", "ogg", "wav", "flac", "mp3"})
PHOTOGRAPHS = ("tin_", "ins_", "f8k_", "f30k_", "coco_", "cc_")

KNOWN = frozenset({("esc50", "209698"), ("esc50", "234879")})
"""Two recordings of which ESC-50 itself has different stretches in fold 5 and in another fold."""


def _flickr(sample: "ShardSample") -> tuple[str, str]:
    return "flickr", sample.key.split("_")[1]


def _youtube(sample: "ShardSample") -> tuple[str, str]:
    return "youtube", sample.about["youtube_id"]


GROUPS: dict[str, Callable[["ShardSample"], tuple[str, str]]] = {
    "emoji": lambda sample: ("emoji", sample.about["name"]),
    "oca": lambda sample: ("oca", sample.about["captions"][0]),
    "esc50": lambda sample: ("esc50", sample.about["freesound_id"]),
    "f8k": _flickr,
    "f30k": _flickr,
    "acaps": _youtube,
    "vgg": _youtube,
}
"""By the first part of a key: what its set is split by; sets that were drawn from one place share a group. Others are
split by key."""


class ShardSample(NamedTuple):
    """One sample of a shard."""

    key: str
    suffix: str
    media: bytes
    text: str
    about: dict[str, Any]


def read_shard(path: Path) -> Iterator[ShardSample]:
    """The samples of a shard in order; UserError names the shard and key of one that is not whole."""
    try:
        with tarfile.open(path) as tar:
            members: dict[str, bytes] = {}
            key = None
            for member in tar:
                stem, _, suffix = member.name.rpartition(".")
                if key is not None and stem != key:
                    yield _sample(path, key, members)
                    members = {}
                key = stem
                file = tar.extractfile(member)
                members[suffix] = file.read() if file else b""
            if key is not None:
                yield _sample(path, key, members)
    except (OSError, EOFError, tarfile.TarError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def held_out(root: Path, *sets: str) -> set[tuple[str, str]]:
    """The groups of those of the named validation sets that a folder of shards has."""
    shards = [shard for name in sets for shard in sorted((root / "val" / name).glob("*.tar.gz"))]
    return {GROUPS[sample.key.partition("_")[0]](sample) for shard in shards for sample in read_shard(shard)}


def check(root: Path, near: int | None = None) -> list[str]:
    """Errors of a folder of shards, one line each; counts go to stdout."""
    errors: list[str] = []
    first: dict[str, dict[Any, str]] = {"train": {}, "val": {}}  # what was seen -> where
    hashes: dict[str, list[int]] = {"train": [], "val": []}
    for split in first:
        shards = sorted((root / split).rglob("*.tar.gz"))
        if not shards:
            raise UserError(f"{root / split}: no shards (*.tar.gz)")
        other = first["train"] if split == "val" else {}
        counts: Counter[str] = Counter()
        for shard in shards:
            for sample in read_shard(shard):
                where = f"{shard.relative_to(root)}: {sample.key}"
                counts[f"{shard.parent.relative_to(root)}/{shard.name.rpartition('-')[0]}"] += 1
                if not sample.about.get("license") or not sample.about.get("source"):
                    errors.append(f"{where} has no license and source")
                if sample.text not in sample.about.get("captions", []):
                    errors.append(f"{where}: its .txt is not one of its captions")
                for what, mark in _marks(sample):
                    if (what, mark) in other and mark not in KNOWN:
                        errors.append(f"{where} has the same {what} as {other[what, mark]}")
                    first[split].setdefault((what, mark), where)
                if near is not None and sample.key.startswith(PHOTOGRAPHS):
                    hashes[split].append(difference_hash(open_picture(sample.media)))
        for name, count in sorted(counts.items()):
            print(f"{name}: {count} samples")
    if near is not None:
        close = _near(hashes, near)
        print(f"photographs of val within {near} of 64 bits of one of train: {close} of {len(hashes['val'])}")
    return errors


def _sample(path: Path, key: str, members: dict[str, bytes]) -> ShardSample:
    media = [suffix for suffix in members if suffix in MEDIA]
    try:
        text, about = members["txt"].decode(), json.loads(members["json"])
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: {key} has no readable .txt and .json ({error!r})") from error
    if len(media) != 1:
        raise UserError(f"{path}: {key} has {len(media)} pictures or sounds, not one")
    return ShardSample(key, media[0], members[media[0]], text, about)


def _marks(sample: ShardSample) -> Iterator[tuple[str, Any]]:
    yield "media", hashlib.sha1(sample.media, usedforsecurity=False).digest()
    yield "key", sample.key
    family = sample.key.partition("_")[0]
    if family in GROUPS:
        yield "group", GROUPS[family](sample)


def _near(hashes: dict[str, list[int]], bits: int) -> int:
    import numpy as np

    train, val = (np.array(hashes[split], dtype=np.uint64) for split in ("train", "val"))
    differences = (np.unpackbits((train ^ one).view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1) for one in val)
    return sum(bool((difference <= bits).any()) for difference in differences)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder with train/ and val/ ($ONEPEACE_DATA)")
    parser.add_argument(
        "--near", type=int, metavar="BITS", help="count look-alikes by a 64-bit hash (2 is a good value)"
    )
    args = parser.parse_args(argv)
    try:
        errors = check(args.root, args.near)
    except UserError as error:
        errors = [str(error)]
    for error in errors:
        print(error, file=sys.stderr)
    print(f"{len(errors)} errors")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
