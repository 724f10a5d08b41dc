"""NLVR2 (Suhr, Zhou, Zhang, Zhang, Bai, Artzi, ACL 2019)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onepeace.datasets.layout import HeldOut, OfficialSplits, Record, Table, option
from onepeace.datasets.media import SharedPhotographs
from onepeace.datasets.reading import find, read_json_lines
from onepeace.errors import UserError

LICENSE = "sentences CC BY 4.0; pictures belong to their owners, for research"
CLASSES = ("True", "False")
IDENTIFIER = re.compile(r"(\w+)-(\d+)-(\d+)-(\d+)")


@dataclass(frozen=True)
class NLVR2(SharedPhotographs, OfficialSplits):
    """NLVR2: sentences that are true or false of a pair of photographs, from github.com/lil-lab/nlvr.

    SOURCE holds, at any depth, train.json, dev.json and test1.json (JSON lines) and the pictures that you have, named
    as that project names them: dev-850-0-img0.png and dev-850-0-img1.png for dev-850-0-1. The label is True or False.
    Consistency counts the sentences (target "sentence") of which all samples are right.
    """

    prefix = "nlvr2"
    hint = "ask its authors for them"
    train: tuple[str, ...] = option(("train",), "official splits that are training data")
    val: tuple[str, ...] = option(("dev",), "official splits that are validation data: dev, test1, or both")

    def tables(self, folder: Path, held_out: HeldOut) -> Mapping[str, Table]:
        pictures = {path.name: path for path in sorted(folder.rglob("*-img?.png"))}
        return {name: _table(folder, name, pictures) for name in self.chosen_splits}


def _table(folder: Path, split: str, pictures: Mapping[str, Path]) -> Table:
    table = find(folder, f"{split}.json", what="the sentences")
    records = []
    for where, row in read_json_lines(table):
        identifier = str(row.get("identifier", ""))
        label = str(row.get("label", ""))
        text = " ".join(str(row.get("sentence", "")).split())
        parts = IDENTIFIER.fullmatch(identifier)
        if parts is None or label not in CLASSES or not text:
            raise UserError("expected identifier (SPLIT-SET-PAIR-SENTENCE), sentence, label True or False", where=where)
        name, set_id, pair, sentence = parts.groups()
        files = [pictures.get(f"{name}-{set_id}-{pair}-img{number}.png") for number in range(2)]
        record = Record(
            key=f"nlvr2_{identifier}",
            source=f"NLVR2 {split}",
            inputs={"image": files if all(files) else None, "text": [text]},
            # The official metrics.py leaves the pair out of the identifier.
            targets={"label": label, "sentence": f"{name}-{set_id}-{sentence}"},
            about={"license": LICENSE, "set_id": set_id},
        )
        records.append(record)
    return Table(table, records, CLASSES)


layout = NLVR2()
