"""FSD50K (Fonseca, Favory, Pons, Font, Serra, TASLP 2022)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from onepeace.datasets.layout import HeldOut, Record, Split, option, present
from onepeace.datasets.reading import find, read_rows
from onepeace.datasets.sounds import HINT, Sounds, sounds_below
from onepeace.errors import UserError

LICENSE = "labels CC BY 4.0; sounds under their Freesound licences"


@dataclass(frozen=True)
class FSD50K(Sounds):
    """FSD50K: 51,197 sounds of up to 30 seconds with several of 200 labels each, from zenodo.org/records/4060432.

    SOURCE holds FSD50K.ground_truth (dev.csv, eval.csv, vocabulary.csv), FSD50K.dev_audio and FSD50K.eval_audio. The
    development set is training data, the evaluation set is validation data. The labels are the target "labels";
    captions are sentences around each of them.
    """

    family = "fsd50k"
    seconds: float = option(30.0, "longest sound; more is cut off")

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        vocabulary = find(folder, "vocabulary.csv", what="the labels")
        classes = [
            row["label"].replace("_", " ")
            for _, row in read_rows(vocabulary, "label", columns=("index", "label", "mid"))
        ]
        for name, shards in (("eval", "val/fsd50k/fsd50k_eval"), ("dev", "train/audio_text/fsd50k_dev")):
            table = find(folder, f"{name}.csv", what="the labels of the sounds")
            records = present(_records(folder, table, name, set(classes)), "audio", table, HINT)
            yield Split(shards, records, self.encode, classes=classes if name == "eval" else None)

    def group(self, record: Record) -> tuple[str, str]:
        return "freesound", record.about["freesound_id"]


def _records(folder: Path, table: Path, split: str, classes: set[str]) -> list[Record]:
    places = [place for place in sorted(folder.rglob(f"FSD50K.{split}_audio")) if place.is_dir()]
    sounds = {path.stem: path for place in places for path in sounds_below(place)}
    records = []
    for where, row in read_rows(table, "fname", "labels"):
        labels = [label.strip().replace("_", " ") for label in row["labels"].split(",")]
        if unknown := [label for label in labels if label not in classes]:
            raise UserError(f"{where}: label {unknown[0]!r} is not in vocabulary.csv")
        name = row["fname"].strip()
        inputs = {"audio": sounds.get(name), "text": [f"the sound of {label}" for label in labels]}
        about = {"license": LICENSE, "freesound_id": name}
        records.append(Record(f"fsd50k_{name}", f"FSD50K {split}", inputs, {"labels": labels}, about))
    return records
