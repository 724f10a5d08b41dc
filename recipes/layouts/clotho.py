"""Clotho (Drossos, Lipping, Virtanen, ICASSP 2020)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onepeace.config.reader import Positive
from onepeace.datasets.layout import HeldOut, OfficialSplits, Record, Table, option
from onepeace.datasets.media import SOUND_HINT, Sounds, sounds_below
from onepeace.datasets.reading import find, read_rows, sentence

LICENSE = "captions: Tampere University, non-commercial; sounds under their Freesound licences"
CAPTIONS = tuple(f"caption_{i}" for i in range(1, 6))


@dataclass(frozen=True)
class Clotho(Sounds, OfficialSplits):
    """Clotho: sounds of 15 to 30 seconds from Freesound with five sentences each, from zenodo.org/records/4783391.

    SOURCE holds clotho_captions_SPLIT.csv and a folder SPLIT of sounds for each split: development is training data,
    evaluation is validation data, validation goes nowhere (for choices that must not touch validation data).
    """

    prefix = "clotho"
    shared_folder = "audio_text"
    hint = SOUND_HINT
    seconds: Positive = option(30.0, "longest sound; more is cut off")
    train: tuple[str, ...] = option(("development",), "official splits that are training data")
    val: tuple[str, ...] = option(("evaluation",), "official splits that are validation data")

    def tables(self, folder: Path, held_out: HeldOut) -> Mapping[str, Table]:
        return {name: _table(folder, name) for name in self.chosen_splits}


def _table(folder: Path, split: str) -> Table:
    table = find(folder, f"clotho_captions_{split}.csv", what="the captions")
    # A split that was not downloaded has no folder, and so no sound.
    sounds = {}
    for split_folder in sorted(folder.rglob(split)):
        for path in sounds_below(split_folder):
            sounds[path.name] = path
    records = []
    for number, (_, row) in enumerate(read_rows(table, "file_name", *CAPTIONS)):
        name = row["file_name"]
        captions = [sentence(row[column]) for column in CAPTIONS]
        record = Record(
            key=f"clotho_{split}_{number:05d}",
            source=f"Clotho {split}",
            inputs={"audio": sounds.get(name), "text": captions},
            targets={},
            about={"license": LICENSE, "file_name": name},
        )
        records.append(record)
    return Table(table, records)


layout = Clotho()
