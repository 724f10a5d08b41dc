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
    SetWriter,
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
    for splits, folder in ((args.val, "val/clotho"), (args.train, "train/audio_text")):
        for split in splits:
            table = find(args.source, f"clotho_captions_{split}.csv", what="the captions")
            sounds = {path.name: path for path in sounds_below(find(args.source, split, what="its sounds"))}
            clips = []
            for i, (_, row) in enumerate(read_rows(table, "file_name", *CAPTIONS)):
                name = row["file_name"].strip()
                captions = [sentence(row[column]) for column in CAPTIONS]
                clips.append(Clip(f"clotho_{split}_{i:05d}", sounds.get(name), captions, {"file_name": name}))
            with SetWriter(args.out / folder, f"clotho_{split}") as writer:
                write_clips(writer, clips, table, args, source=f"Clotho {split}", license=LICENSE)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this script."""
    arguments = parser(__doc__)
    split_arguments(arguments, "development", "evaluation")
    sound_arguments(arguments, 30)
    return run(build, arguments, argv)


if __name__ == "__main__":
    sys.exit(main())
