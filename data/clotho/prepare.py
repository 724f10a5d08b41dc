#!/usr/bin/env python3
"""Clotho: sounds of 15 to 30 seconds from Freesound with five sentences each, from zenodo.org/records/4783391.

SOURCE holds clotho_captions_SPLIT.csv and a folder SPLIT of sounds for each split: development is training data,
evaluation is validation data, validation goes nowhere (for choices that must not touch validation data).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from shardwriter import (
    Clip,
    ClipSet,
    find,
    parser,
    read_rows,
    refuse_split_in_both,
    run,
    sentence,
    sound_arguments,
    sounds_below,
    split_arguments,
    write_clips,
)

LICENSE = "captions: Tampere University, non-commercial; sounds under their Freesound licences"
CAPTIONS = tuple(f"caption_{i}" for i in range(1, 6))


def build(args: argparse.Namespace) -> None:
    """Write one set of shards for each split."""
    refuse_split_in_both(args)
    sets = [_split(args.source, split, "val/clotho") for split in args.val]
    sets += [_split(args.source, split, "train/audio_text") for split in args.train]
    write_clips(sets, args, LICENSE)


def _split(source: Path, split: str, folder: str) -> ClipSet:
    table = find(source, f"clotho_captions_{split}.csv", what="the captions")
    # A split that was not downloaded has no folder, and so no sound.
    sounds = {path.name: path for place in sorted(source.rglob(split)) for path in sounds_below(place)}
    clips = []
    for i, (_, row) in enumerate(read_rows(table, "file_name", *CAPTIONS)):
        captions = [sentence(row[column]) for column in CAPTIONS]
        name = row["file_name"]
        clips.append(Clip(f"clotho_{split}_{i:05d}", sounds.get(name), captions, {"file_name": name}))
    return ClipSet(folder, f"clotho_{split}", clips, table, f"Clotho {split}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this script."""
    arguments = parser(__doc__)
    split_arguments(arguments, "development", "evaluation")
    sound_arguments(arguments, 30)
    return run(build, arguments, argv)


if __name__ == "__main__":
    sys.exit(main())
