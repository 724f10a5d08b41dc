"""AudioCaps (Kim et al., NAACL 2019)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onepeace.datasets.layout import HeldOut, OfficialSplits, Record, Table, option
from onepeace.datasets.reading import find, read_rows, sentence, whole_number
from onepeace.datasets.sounds import HINT, Sounds, sounds_below
from onepeace.errors import UserError

LICENSE = "captions: academic use (AudioCaps terms); sounds belong to the owners of the videos"
NAME = re.compile(r"Y?([\w-]{11})(?:_(\d+)(?:\.\d+)?(?:_\d+(?:\.\d+)?)?)?")
"""Name of a sound file without its ending; the id of a video has eleven characters."""


@dataclass(frozen=True)
class AudioCaps(Sounds, OfficialSplits):
    """AudioCaps: ten-second sounds of YouTube videos with a sentence each (five in val and test), from
    github.com/cdjkim/audiocaps.

    SOURCE holds train.csv, val.csv and test.csv (audiocap_id,youtube_id,start_time,caption) and, at any depth, the
    sounds that you have: wav, flac, ogg, opus or mp3, each cut to its ten seconds and named by its video, ID, YID,
    ID_START, ID_START_END (START in seconds, or in milliseconds as AudioSet's scripts do), or by its audiocap_id.
    Videos are not read: extract their sound first. Clips whose video is validation data of VGGSound below the same root
    are left out of training.
    """

    prefix, pairs, hint = "audiocaps", "audio_text", HINT
    train: tuple[str, ...] = option(("train",), "official splits that are training data")
    val: tuple[str, ...] = option(("test",), "official splits that are validation data")

    def tables(self, folder: Path, held_out: HeldOut) -> Mapping[str, Table]:
        sounds = _sounds(folder)
        apart = {record.about["youtube_id"] for record in held_out("vggsound")}
        tables = {name: _table(folder, name, sounds, set()) for name in self.val}
        return tables | {name: _table(folder, name, sounds, apart) for name in self.train}


def _table(folder: Path, split: str, sounds: Mapping[tuple[str, int | None], Path], apart: set[str]) -> Table:
    """The clips of a split, except those of the videos in `apart`."""
    table = find(folder, f"{split}.csv", what="the captions")
    captions: dict[tuple[str, int], list[str]] = {}
    numbers: dict[tuple[str, int], list[str]] = {}
    for where, row in read_rows(table, "audiocap_id", "youtube_id", "start_time", "caption"):
        video, start = row["youtube_id"].strip(), whole_number(row["start_time"], where)
        if not re.fullmatch(r"[\w-]{11}", video):
            raise UserError(f"{where}: {video!r} is not the id of a video")
        captions.setdefault((video, start), []).append(sentence(row["caption"]))
        numbers.setdefault((video, start), []).append(row["audiocap_id"].strip())
    records = []
    for (video, start), texts in captions.items():
        names = [(video, start), (video, start * 1000), (video, None), *((n, None) for n in numbers[video, start])]
        inputs = {"audio": next((sounds[name] for name in names if name in sounds), None), "text": texts}
        about = {"license": LICENSE, "youtube_id": video, "start": start}
        if video not in apart:
            records.append(Record(f"acaps_{video}_{start}", f"AudioCaps {split}", inputs, {}, about))
    return Table(table, records)


def _sounds(folder: Path) -> dict[tuple[str, int | None], Path]:
    """The sound files by the content of their names: (video, start or None) or (audiocap_id, None)."""
    sounds: dict[tuple[str, int | None], Path] = {}
    for path in sounds_below(folder):
        if name := NAME.fullmatch(path.stem):
            sounds.setdefault((name[1], int(name[2]) if name[2] else None), path)
        elif path.stem.isdecimal():
            sounds.setdefault((path.stem, None), path)
    return sounds
