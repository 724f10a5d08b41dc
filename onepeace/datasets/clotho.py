"""Clotho (Drossos, Lipping, Virtanen, ICASSP 2020)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from onepeace.datasets.layout import HeldOut, OfficialSplits, Record, Split, option, present
from onepeace.datasets.reading import find, read_rows, sentence
from onepeace.datasets.sounds import HINT, Sounds, sounds_below

LICENSE = "captions: Tampere University, non-commercial; sounds under their Freesound licences"
CAPTIONS = tuple(f"caption_{i}" for i in range(1, 6))


@dataclass(frozen=True)
class Clotho(Sounds, OfficialSplits):
    """Clotho: sounds of 15 to 30 seconds from Freesound with five sentences each, from zenodo.org/records/4783391.

    SOURCE holds clotho_captions_SPLIT.csv and a folder SPLIT of sounds for each split: development is training data,
    evaluation is validation data, validation goes nowhere (for choices that must not touch validation data).
    """

    family = "clotho"
    seconds: float = option(30.0, "longest sound; more is cut off")
    train: tuple[str, ...] = option(("development",), "official splits that are training data")
    val: tuple[str, ...] = option(("evaluation",), "official splits that are validation data")

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        splits = []
        for name, shards in self.chosen("val/clotho", "train/audio_text"):
            table = find(folder, f"clotho_captions_{name}.csv", what="the captions")
            records = present(_records(folder, table, name), "audio", table, HINT)
            splits.append(Split(f"{shards}/clotho_{name}", records, self.encode))
        yield from splits  # all tables are read before the first shard is written


def _records(folder: Path, table: Path, split: str) -> list[Record]:
    # A split that was not downloaded has no folder, and so no sound.
    sounds = {path.name: path for place in sorted(folder.rglob(split)) for path in sounds_below(place)}
    records = []
    for i, (_, row) in enumerate(read_rows(table, "file_name", *CAPTIONS)):
        name = row["file_name"]
        inputs = {"audio": sounds.get(name), "text": [sentence(row[column]) for column in CAPTIONS]}
        about = {"license": LICENSE, "file_name": name}
        records.append(Record(f"clotho_{split}_{i:05d}", f"Clotho {split}", inputs, {}, about))
    return records
