"""Sounds with the beginning and end of each event: DESED (Turpault, Serizel, Salamon, Shah, DCASE 2019), and tables of
users in the same form."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from onepeace.datasets.layout import HeldOut, OfficialSplits, Record, Table, option
from onepeace.datasets.media import SOUND_HINT, SOUNDS, Sounds, sounds_below
from onepeace.datasets.reading import find, plain_name, read_rows
from onepeace.errors import UserError

COLUMNS = ("filename", "onset", "offset", "event_label")


@dataclass(frozen=True)
class SoundEvents(Sounds, OfficialSplits):
    """Events in sounds, from tables of your own.

    SOURCE holds train.csv and val.csv (or .tsv) with the columns filename, onset, offset (both in seconds) and
    event_label, one row per event, and the sounds (wav, flac, ogg, opus or mp3): filename is a path relative to SOURCE,
    or the name of a sound at any depth, with or without its ending. A sound without an event has one row, whose other
    cells are empty. The target "events" is a list of [onset, offset, label]; events after the end of the longest
    sound are cut off.
    """

    key: ClassVar[str] = "events"
    hint = SOUND_HINT
    name: str = option("sound_events", "name of the shards and their folders")
    license: str = option("not stated", "licence of the sounds")
    train: tuple[str, ...] = option(("train",), "tables that are training data")
    val: tuple[str, ...] = option(("val",), "tables that are validation data")

    def shards(self, split: str) -> str:
        part = "val" if split in self.val else "train"
        return f"{part}/{self.name}/{self.name}_{plain_name(split)}"

    def tables(self, folder: Path, held_out: HeldOut) -> Mapping[str, Table]:
        tables = {}
        labels = set()
        for split in self.chosen_splits:
            table, sounds = self.files_of_split(folder, split)
            tables[split] = self._table(split, table, sounds)
            for record in tables[split].records:
                labels |= {label for _, _, label in record.targets["events"]}
        classes = sorted(labels)
        return {split: table._replace(classes=classes) for split, table in tables.items()}

    def files_of_split(self, folder: Path, split: str) -> tuple[Path, Path]:
        """The table of a split, and the folder of its sounds."""
        table = find(folder, f"{split}.csv", f"{split}.tsv", what="the events")
        return table, folder

    def _table(self, split: str, table: Path, sounds: Path) -> Table:
        sound_by_stem = {_stem(path.name): path for path in sounds_below(sounds)}
        records = []
        events_by_file = _events(table, self.seconds)
        for file_number, (file, events) in enumerate(events_by_file.items()):
            sound: Path | None = sounds / file
            if not (sounds / file).is_file():
                sound = sound_by_stem.get(_stem(Path(file).name))
            record = Record(
                key=f"{self.key}_{plain_name(split)}_{file_number:06d}",
                source=f"{self.name} {split}",
                inputs={"audio": sound, "text": []},
                targets={"events": events},
                about={"license": self.license, "file_name": file},
            )
            records.append(record)
        return Table(table, records)


def _events(table: Path, seconds: float) -> dict[str, list[list[Any]]]:
    """The events within the first `seconds`, in the order of their onsets, by file."""
    events_by_file: dict[str, list[list[Any]]] = {}
    for where, row in read_rows(table, "filename"):
        for name in COLUMNS:
            if name not in row:
                raise UserError(f"no column {name}; expected {', '.join(COLUMNS)}", where=where)
        events = events_by_file.setdefault(row["filename"], [])
        if not any(row[name] for name in COLUMNS[1:]):
            continue
        onset = _number(row["onset"], where)
        offset = _number(row["offset"], where)
        label = row["event_label"].replace("_", " ").strip()
        if not 0 <= onset <= offset or not label:
            raise UserError(
                f"expected 0 <= onset <= offset and a label, found {onset}, {offset}, {label!r}", where=where
            )
        if onset < seconds:
            events.append([onset, min(offset, seconds), label])
    return {file: sorted(events) for file, events in events_by_file.items()}


def _stem(name: str) -> str:
    """The name of a sound without its suffix; "Y-id_30.000_40.000" has none."""
    path = Path(name)
    return path.stem if path.suffix.lower() in SOUNDS else name


def _number(text: str, where: str) -> float:
    """Parse a finite number in a cell; `where` is for the message."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"expected a number, found {text!r}", where=where)
    return value


layout = SoundEvents()
