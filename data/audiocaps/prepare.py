#!/usr/bin/env python3
"""AudioCaps: ten-second sounds of YouTube videos with a sentence each (five in val and test), from
github.com/cdjkim/audiocaps.

SOURCE holds train.csv, val.csv and test.csv (audiocap_id,youtube_id,start_time,caption) and, at any depth, the sounds
that you have: wav, flac, ogg, opus or mp3, each cut to its ten seconds and named by its video, ID, YID, ID_START,
ID_START_END (START in seconds, or in milliseconds as AudioSet's scripts do), or by its audiocap_id. Videos are not
read: extract their sound first. Clips whose video ROOT has as validation data of VGGSound are left out of training.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from check import held_out
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
    whole_number,
    write_clips,
)

from onepeace.errors import UserError

LICENSE = "captions: academic use (AudioCaps terms); sounds belong to the owners of the videos"
NAME = re.compile(r"Y?([\w-]{11})(?:_(\d+)(?:\.\d+)?(?:_\d+(?:\.\d+)?)?)?")
"""Name of a sound file without its ending; the id of a video has eleven characters."""


def build(args: argparse.Namespace) -> None:
    """Write one set of shards for each split."""
    refuse_split_in_both(args)
    sounds = _sounds(args.source)
    apart = held_out(args.out, "vggsound")
    sets = [_split(args.source, split, "val/audiocaps", sounds, set()) for split in args.val]
    sets += [_split(args.source, split, "train/audio_text", sounds, apart) for split in args.train]
    write_clips(sets, args, LICENSE)


def _split(
    source: Path,
    split: str,
    folder: str,
    sounds: Mapping[tuple[str, int | None], Path],
    apart: set[tuple[str, str]],
) -> ClipSet:
    """The clips of a split, less those of the videos in ``apart``."""
    table = find(source, f"{split}.csv", what="the captions")
    captions: dict[tuple[str, int], list[str]] = {}
    numbers: dict[tuple[str, int], list[str]] = {}
    for where, row in read_rows(table, "audiocap_id", "youtube_id", "start_time", "caption"):
        video, start = row["youtube_id"].strip(), whole_number(row["start_time"], where)
        if not re.fullmatch(r"[\w-]{11}", video):
            raise UserError(f"{where}: {video!r} is not the id of a video")
        captions.setdefault((video, start), []).append(sentence(row["caption"]))
        numbers.setdefault((video, start), []).append(row["audiocap_id"].strip())
    clips = []
    for (video, start), texts in captions.items():
        if ("youtube", video) in apart:
            continue
        names = [
            (video, start),
            (video, start * 1000),
            (video, None),
            *((number, None) for number in numbers[video, start]),
        ]
        path = next((sounds[name] for name in names if name in sounds), None)
        clips.append(Clip(f"acaps_{video}_{start}", path, texts, {"youtube_id": video, "start": start}))
    return ClipSet(folder, f"audiocaps_{split}", clips, table, f"AudioCaps {split}")


def _sounds(source: Path) -> dict[tuple[str, int | None], Path]:
    """The sound files by what their names say: (video, start or None) or (audiocap_id, None)."""
    sounds: dict[tuple[str, int | None], Path] = {}
    for path in sounds_below(source):
        if name := NAME.fullmatch(path.stem):
            sounds.setdefault((name[1], int(name[2]) if name[2] else None), path)
        elif path.stem.isdecimal():
            sounds.setdefault((path.stem, None), path)
    return sounds


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this script."""
    arguments = parser(__doc__)
    split_arguments(arguments, "train", "test")
    sound_arguments(arguments, 10)
    return run(build, arguments, argv)


if __name__ == "__main__":
    sys.exit(main())
