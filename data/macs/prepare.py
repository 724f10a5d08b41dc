#!/usr/bin/env python3
"""MACS: ten-second recordings of places in cities with two to five sentences each, from zenodo.org/records/5114771.

SOURCE holds MACS.yaml and, at any depth, the sounds of TAU Urban Acoustic Scenes 2019, development
(zenodo.org/records/2589280), such as audio/airport-barcelona-0-0-a.wav. The set has no splits; all of it is training
data. The label is the kind of place, from the name of the file.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from shardwriter import Clip, ClipSet, find, parser, run, sentence, sound_arguments, sounds_below, write_clips

from onepeace.errors import UserError

LICENSE = "captions: MACS licence (Tampere University); sounds: non-commercial (TAU Urban Acoustic Scenes 2019)"


def build(args: argparse.Namespace) -> None:
    """Write the training shards."""
    table = find(args.source, "MACS.yaml", what="the captions")
    sounds = {path.name: path for path in sounds_below(args.source)}
    clips = []
    for i, row in enumerate(_rows(table)):
        try:
            name = Path(row["filename"]).name
            captions = [sentence(note["sentence"]) for note in row["annotations"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{_place(table, i)}: no filename and annotations with sentences: {row!r:.100}") from error
        captions = [caption for caption in captions if caption]
        if not captions:
            raise UserError(f"{_place(table, i)}: {name} has no sentence")
        label = name.partition("-")[0].replace("_", " ")
        clips.append(Clip(f"macs_{Path(name).stem}", sounds.get(name), captions, {"label": label}))
    if not clips:
        raise UserError(f"{table}: its list of files is empty")
    write_clips([ClipSet("train/audio_text", "macs", clips, table, "MACS")], args, LICENSE)


def _loader() -> Any:
    """As SafeLoader, in C where PyYAML was built with it: seconds in place of half a minute."""
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _place(path: Path, i: int) -> str:
    """Where an entry of the list of files begins, as "FILE:LINE"; the whole file is parsed for that."""
    import yaml

    root = yaml.compose(path.read_text(encoding="utf-8"), Loader=_loader())
    files = next(value for key, value in root.value if key.value == "files")
    return f"{path}:{files.value[i].start_mark.line + 1}"


def _rows(path: Path) -> list[Any]:
    import yaml

    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_loader())  # noqa: S506
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(
            f"{path}{line}: not YAML ({getattr(error, 'problem', None) or type(error).__name__})"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    rows = content.get("files") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise UserError(f"{path}: has no list of files")
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this script."""
    arguments = parser(__doc__)
    sound_arguments(arguments, 10)
    return run(build, arguments, argv)


if __name__ == "__main__":
    sys.exit(main())
