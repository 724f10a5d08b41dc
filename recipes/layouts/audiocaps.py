"""AudioCaps (Kim et al., NAACL 2019)."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from onepeace.datasets.layout import HeldOut, OfficialSplits, Record, Table, option
from onepeace.datasets.media import SOUND_HINT, Sounds, sounds_below
from onepeace.datasets.reading import find, read_rows, sentence, whole_number
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

    prefix = "audiocaps"
    shared_folder = "audio_text"
    hint = SOUND_HINT
    train: tuple[str, ...] = option(("train",), "official splits that are training data")
    val: tuple[str, ...] = option(("test",), "official splits that are validation data")

    def tables(self, folder: Path, held_out: HeldOut) -> Mapping[str, Table]:
        sounds = _sounds(folder)
        videos_of_vggsound = {record.about["youtube_id"] for record in held_out("vggsound")}
        tables = {}
        for split in self.chosen_splits:
            left_out = videos_of_vggsound if split in self.train else set()
            tables[split] = _table(folder, split, sounds, left_out)
        return tables


SoundName = tuple[str, int | None]
"""Content of the name of a sound file: (video, start or None) or (audiocap_id, None)."""


class Clip(NamedTuple):
    """Part of a video, which several rows of a table may describe."""

    video: str
    start: int
    captions: list[str]
    numbers: list[str]
    """Its audiocap_ids."""

    def sound_names(self) -> list[SoundName]:
        """Names that its sound file may have, the most specific first."""
        names: list[SoundName] = [
            (self.video, self.start),
            (self.video, self.start * 1000),
            (self.video, None),
        ]
        return names + [(number, None) for number in self.numbers]


def _table(folder: Path, split: str, sounds: Mapping[SoundName, Path], left_out: set[str]) -> Table:
    """The clips of a split, except those of the videos in `left_out`."""
    table = find(folder, f"{split}.csv", what="the captions")
    records = []
    for clip in _clips(table):
        if clip.video in left_out:
            continue
        paths = [sounds[name] for name in clip.sound_names() if name in sounds]
        record = Record(
            key=f"acaps_{clip.video}_{clip.start}",
            source=f"AudioCaps {split}",
            inputs={"audio": paths[0] if paths else None, "text": clip.captions},
            targets={},
            about={"license": LICENSE, "youtube_id": clip.video, "start": clip.start},
        )
        records.append(record)
    return Table(table, records)


def _clips(table: Path) -> Iterable[Clip]:
    """The clips of a table in the order of their first rows."""
    clips: dict[tuple[str, int], Clip] = {}
    for where, row in read_rows(table, "audiocap_id", "youtube_id", "start_time", "caption"):
        video = row["youtube_id"].strip()
        start = whole_number(row["start_time"], where)
        if not re.fullmatch(r"[\w-]{11}", video):
            raise UserError(f"{video!r} is not the id of a video", where=where)
        if (video, start) not in clips:
            clips[video, start] = Clip(video, start, captions=[], numbers=[])
        clip = clips[video, start]
        clip.captions.append(sentence(row["caption"]))
        clip.numbers.append(row["audiocap_id"].strip())
    return clips.values()


def _sounds(folder: Path) -> dict[SoundName, Path]:
    """The sound files by the content of their names."""
    sounds: dict[SoundName, Path] = {}
    for path in sounds_below(folder):
        name = NAME.fullmatch(path.stem)
        if name is not None:
            start = int(name[2]) if name[2] else None
            sounds.setdefault((name[1], start), path)
        elif path.stem.isdecimal():
            sounds.setdefault((path.stem, None), path)
    return sounds


layout = AudioCaps()
