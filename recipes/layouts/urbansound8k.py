"""UrbanSound8K (Salamon, Jacoby, Bello, ACM Multimedia 2014)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from onepeace.config.reader import Count, Positive
from onepeace.datasets.layout import HeldOut, Record, Split, option, present
from onepeace.datasets.media import SOUND_CAPTIONS, SOUND_HINT, Sounds, sounds_below
from onepeace.datasets.reading import find, read_rows, whole_number
from onepeace.errors import UserError

LICENSE = "CC BY-NC 3.0; sounds under their Freesound licences"


@dataclass(frozen=True)
class UrbanSound8K(Sounds):
    """UrbanSound8K: 8,732 sounds of up to four seconds in 10 classes and 10 folds, from zenodo.org/records/1203745.

    SOURCE holds metadata/UrbanSound8K.csv and audio/foldN/*.wav. One fold is validation data, the others are training
    data; slices of one recording share a fold. Captions are sentences around the class name.
    """

    seconds: Positive = option(4.0, "longest sound; more is cut off")
    val_fold: Count = option(10, "fold that is validation data")

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        table = find(folder, "UrbanSound8K.csv", what="the labels")
        sounds = {path.name: path for path in sounds_below(folder)}
        records = []
        name_by_target = {}
        for where, row in read_rows(table, "slice_file_name", "fsID", "fold", "classID", "class"):
            target = whole_number(row["classID"], where)
            label = row["class"].strip().replace("_", " ")
            name_by_target[target] = label
            file_name = row["slice_file_name"].strip()
            captions = [caption.format(label) for caption in SOUND_CAPTIONS]
            record = Record(
                key=f"us8k_{Path(file_name).stem}",
                source="UrbanSound8K",
                inputs={"audio": sounds.get(file_name), "text": captions},
                targets={"label": label},
                about={
                    "license": LICENSE,
                    "target": target,
                    "fold": whole_number(row["fold"], where),
                    "freesound_id": row["fsID"],
                },
            )
            records.append(record)
        targets = sorted(name_by_target)
        if targets != list(range(len(targets))) or not targets:
            raise UserError(f"has the classes {targets}, not all from 0", where=table)
        val = []
        train = []
        for record in records:
            if record.about["fold"] == self.val_fold:
                val.append(record)
            else:
                train.append(record)
        classes = [name_by_target[target] for target in targets]
        shards = f"val/urbansound8k/urbansound8k_fold{self.val_fold}"
        yield Split(shards, present(val, table, SOUND_HINT), self.encode, classes=classes)
        yield Split("train/audio_text/urbansound8k", present(train, table, SOUND_HINT), self.encode)


layout = UrbanSound8K()
