"""SNLI-VE (Xie, Lai, Doran, Kadav, arXiv 1901.06706)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onepeace.datasets.layout import HeldOut, OfficialSplits, Record, Table, option
from onepeace.datasets.pictures import SharedPhotographs
from onepeace.datasets.reading import find, plain_name, read_json_lines
from onepeace.errors import UserError

LICENSE = "statements CC BY-SA 4.0 (SNLI); Flickr photographs, research and educational use (Flickr30k terms)"
CLASSES = ("contradiction", "entailment", "neutral")


@dataclass(frozen=True)
class SnliVE(SharedPhotographs, OfficialSplits):
    """SNLI-VE: statements that a photograph of Flickr30k implies, denies or leaves open, from
    github.com/necla-ml/SNLI-VE.

    SOURCE holds, at any depth, snli_ve_SPLIT.jsonl and the folder flickr30k-images (or flickr30k_images). One sample
    per statement, which is its caption; the target "label" is one of three, the target "premise" a sentence of a person
    about the photograph.
    """

    prefix, hint = "snli_ve", "ask the authors of Flickr30k for them"
    train: tuple[str, ...] = option(("train",), "official splits that are training data")
    val: tuple[str, ...] = option(("dev",), "official splits that are validation data: dev, test, or both")

    def tables(self, folder: Path, held_out: HeldOut) -> Mapping[str, Table]:
        place = find(folder, "flickr30k-images", "flickr30k_images", what="the photographs")
        pictures = {path.stem: path for path in sorted(place.rglob("*.jpg"))}
        return {name: _table(folder, name, pictures) for name in (*self.val, *self.train)}


def _table(folder: Path, split: str, pictures: Mapping[str, Path]) -> Table:
    table, records = find(folder, f"snli_ve_{split}.jsonl", what="the statements"), []
    for where, row in read_json_lines(table):
        names = ("pairID", "Flickr30K_ID", "gold_label", "sentence1", "sentence2")
        key, image, label, premise, text = (" ".join(str(row.get(name, "")).split()) for name in names)
        image = image.removesuffix(".jpg")
        if not key or not image or not premise or not text or label not in CLASSES:
            raise UserError(f"{where}: expected {', '.join(names)}, and gold_label one of {', '.join(CLASSES)}")
        inputs = {"image": pictures.get(image), "text": [text]}
        targets = {"label": label, "premise": premise}
        about = {"license": LICENSE, "image_id": image}
        key = f"snlive_{plain_name(key.replace('.jpg', ''))}"
        records.append(Record(key, f"SNLI-VE {split}", inputs, targets, about))
    return Table(table, records, CLASSES)
