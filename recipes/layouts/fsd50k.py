"""FSD50K (Fonseca, Favory, Pons, Font, Serra, TASLP 2022)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onepeace.config.reader import Positive
from onepeace.datasets.layout import HeldOut, OfficialSplits, Record, Table, option
from onepeace.datasets.media import SOUND_HINT, Sounds, sounds_below
from onepeace.datasets.reading import find, read_rows
from onepeace.errors import UserError

LICENSE = "labels CC BY 4.0; sounds under their Freesound licences"


@dataclass(frozen=True)
class FSD50K(Sounds, OfficialSplits):
    """FSD50K: 51,197 sounds of up to 30 seconds with several of 200 labels each, from zenodo.org/records/4060432.

    SOURCE holds FSD50K.ground_truth (dev.csv, eval.csv, vocabulary.csv), FSD50K.dev_audio and FSD50K.eval_audio. The
    labels are the target "labels"; captions are sentences around each of them.
    """

    prefix = "fsd50k"
    shared_folder = "audio_text"
    hint = SOUND_HINT
    seconds: Positive = option(30.0, "longest sound; more is cut off")
    train: tuple[str, ...] = option(("dev",), "official splits that are training data")
    val: tuple[str, ...] = option(("eval",), "official splits that are validation data")

    def tables(self, folder: Path, held_out: HeldOut) -> Mapping[str, Table]:
        vocabulary = find(folder, "vocabulary.csv", what="the labels")
        rows = read_rows(vocabulary, "label", columns=("index", "label", "mid"))
        classes = [row["label"].replace("_", " ") for _, row in rows]
        return {name: _table(folder, name, classes) for name in self.chosen_splits}


def _table(folder: Path, split: str, classes: Sequence[str]) -> Table:
    table = find(folder, f"{split}.csv", what="the labels of the sounds")
    sounds = {}
    for split_folder in sorted(folder.rglob(f"FSD50K.{split}_audio")):
        if split_folder.is_dir():
            for path in sounds_below(split_folder):
                sounds[path.stem] = path
    records = []
    for where, row in read_rows(table, "fname", "labels"):
        names = row["labels"].split(",")
        labels = [name.strip().replace("_", " ") for name in names]
        unknown = {*labels} - {*classes}
        if unknown:
            raise UserError(f"label {min(unknown)!r} is not in vocabulary.csv", where=where)
        freesound_id = row["fname"].strip()
        captions = [f"the sound of {label}" for label in labels]
        record = Record(
            key=f"fsd50k_{freesound_id}",
            source=f"FSD50K {split}",
            inputs={"audio": sounds.get(freesound_id), "text": captions},
            targets={"labels": labels},
            about={"license": LICENSE, "freesound_id": freesound_id},
        )
        records.append(record)
    return Table(table, records, classes)


layout = FSD50K()
