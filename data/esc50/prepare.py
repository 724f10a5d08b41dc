#!/usr/bin/env python3
"""ESC-50: 2,000 five-second sounds of 50 classes, from github.com/karolpiczak/ESC-50.

SOURCE is the checkout: audio/FOLD-CLIP-TAKE-TARGET.wav. (Its first layout, "NNN - Class/FOLD-CLIP-TAKE.ogg", is read
too.) The sounds become 16 kHz mono Ogg Vorbis of exactly five seconds. Fold 5 is validation data, folds 1 to 4 are
training data. captions.json has three sentences per class.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from shardwriter import RATE, SetWriter, load_sound, ogg, parser, read_json, run, shuffled, write_classes

from onepeace.errors import UserError

SECONDS = 5
ESC10 = frozenset({0, 1, 10, 11, 12, 20, 21, 38, 40, 41})
"""Targets of the ten classes that are under CC BY, the ESC-10 part."""


class Clip(NamedTuple):
    """What the name of a file says."""

    fold: int
    target: int
    recording: str
    take: str
    path: Path


def build(args: argparse.Namespace) -> None:
    """Write the shards of both splits and the list of classes."""
    captions = read_json(Path(__file__).with_name("captions.json"))
    names = list(captions)  # in the order of the targets
    clips = shuffled(_clips(args.source))

    def write(folder: Path, prefix: str, validation: bool) -> None:
        with SetWriter(folder, prefix) as writer:
            for clip in clips:
                if (clip.fold == 5) != validation:
                    continue
                try:
                    samples = load_sound(clip.path, SECONDS)
                except UserError as error:
                    writer.skip(clip.path, error)
                    continue
                samples = np.pad(samples, (0, RATE * SECONDS - len(samples)))
                writer.add(
                    f"esc50_{clip.fold}-{clip.recording}-{clip.take}-{clip.target}",
                    "ogg",
                    ogg(samples, RATE, args.level),
                    captions[names[clip.target]],
                    label=names[clip.target],
                    source="ESC-50",
                    license="CC BY 3.0" if clip.target in ESC10 else "CC BY-NC 3.0",
                    target=clip.target,
                    fold=clip.fold,
                    freesound_id=clip.recording,
                )

    write(args.out / "val/esc50_fold5", "esc50_fold5", True)
    write_classes(args.out / "val/esc50_fold5/classes.json", names)
    write(args.out / "train/audio_text", "esc50", False)


def _clips(source: Path) -> list[Clip]:
    clips = []
    for path in sorted([*source.rglob("*.wav"), *source.rglob("*.ogg")]):
        if name := re.fullmatch(r"([1-5])-(\d+)-([A-Z])-(\d+)", path.stem):
            target = int(name[4])
        else:
            name = re.fullmatch(r"([1-5])-(\d+)-([A-Z])", path.stem)
            folder = re.match(r"([1-5])(\d\d) - ", path.parent.name)  # 101 to 110, 201 to 210, ...
            target = (int(folder[1]) - 1) * 10 + int(folder[2]) - 1 if folder else -1
        if name is None or not 0 <= target < 50:
            print(f"left out {path}: not named FOLD-CLIP-TAKE-TARGET with a target of 0 to 49", file=sys.stderr)
            continue
        clips.append(Clip(int(name[1]), target, name[2], name[3], path))
    if not clips:
        raise UserError(f"{source}: no sounds named FOLD-CLIP-TAKE-TARGET.wav, such as audio/1-100032-A-0.wav")
    return clips


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this script."""
    arguments = parser(__doc__)
    arguments.add_argument(
        "--level", type=float, default=0.9, help="Vorbis compression, 0 (best) to 1 (smallest); default 0.9"
    )
    return run(build, arguments, argv)


if __name__ == "__main__":
    sys.exit(main())
