#!/usr/bin/env python3
"""VGGSound: ten-second sounds of YouTube videos in 309 classes, from www.robots.ox.ac.uk/~vgg/data/vggsound.

SOURCE holds vggsound.csv (video, start second, label, split; no names of columns) and, at any depth, the sounds that
you have: wav, flac, ogg, opus or mp3, cut to their ten seconds and named ID_START with START in six digits, such as
---g-f_I2yQ_000001.wav. Videos are not read: extract their sound first. Captions are sentences around the label. Clips
whose video ROOT has as validation data of AudioCaps are left out of training.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from check import held_out
from shardwriter import (
    Clip,
    ClipSet,
    find,
    parser,
    read_rows,
    run,
    sound_arguments,
    sounds_below,
    whole_number,
    write_classes,
    write_clips,
)

from onepeace.errors import UserError

TEMPLATES = ("{}", "the sound of {}", "a recording of {}")
LICENSE = "list: CC BY 4.0; sounds belong to the owners of the videos"
COLUMNS = ("video", "start", "label", "split")


def build(args: argparse.Namespace) -> None:
    """Write the shards of both splits and the list of classes."""
    table = find(args.source, "vggsound.csv", what="the labels")
    rows = []
    for where, row in read_rows(table, *COLUMNS, columns=COLUMNS):
        if row["split"] not in ("train", "test"):
            raise UserError(f"{where}: the split is {row['split']!r}, not train or test")
        rows.append((row["video"], whole_number(row["start"], where), row["label"].strip(), row["split"]))
    if not rows:
        raise UserError(f"{table}: has no rows")
    labels = sorted({label for _, _, label, _ in rows})
    write_clips(_splits(args, table, rows, labels), args, LICENSE)
    write_classes(args.out / "val/vggsound/classes.json", labels)


def _splits(
    args: argparse.Namespace, table: Path, rows: Sequence[tuple[str, int, str, str]], labels: Sequence[str]
) -> Iterator[ClipSet]:
    """The clips of both splits; rows are (video, start, label, split)."""
    sounds = {path.stem: path for path in sounds_below(args.source)}
    target = {label: i for i, label in enumerate(labels)}
    for split, folder in (("test", "val/vggsound"), ("train", "train/audio_text")):
        apart = held_out(args.out, "audiocaps") if split == "train" else set()
        clips = []
        for video, start, label, its_split in rows:
            if its_split != split or ("youtube", video) in apart:
                continue
            name = f"{video}_{start:06d}"
            captions = [template.format(label) for template in TEMPLATES]
            fields = {"label": label, "target": target[label], "youtube_id": video, "start": start}
            clips.append(Clip(f"vgg_{name}", sounds.get(name), captions, fields))
        yield ClipSet(folder, f"vggsound_{split}", clips, table, f"VGGSound {split}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this script."""
    arguments = parser(__doc__)
    sound_arguments(arguments, 10)
    return run(build, arguments, argv)


if __name__ == "__main__":
    sys.exit(main())
