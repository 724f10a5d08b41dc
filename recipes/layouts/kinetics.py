"""Kinetics (Kay et al., arXiv 1705.06950)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onepeace.datasets.layout import Encoded, HeldOut, OfficialSplits, Record, Table, option
from onepeace.datasets.reading import find, read_rows, whole_number

LICENSE = "list CC BY 4.0; videos belong to their owners"


@dataclass(frozen=True)
class Kinetics(OfficialSplits):
    """Kinetics: ten-second videos of human actions, from github.com/cvdfoundation/kinetics-dataset.

    SOURCE holds train.csv and val.csv (label,youtube_id,time_start,time_end,split) and, at any depth, the videos that
    you have, named ID_START_END.mp4 with six digits each. They go into the shards as they are, KEY.mp4.
    """

    prefix = "kinetics"
    hint = "videos are named ID_START_END.mp4"
    train: tuple[str, ...] = option(("train",), "official splits that are training data")
    val: tuple[str, ...] = option(("val",), "official splits that are validation data")

    def tables(self, folder: Path, held_out: HeldOut) -> Mapping[str, Table]:
        videos = {path.stem: path for path in sorted(folder.rglob("*.mp4"))}
        tables = {name: _table(folder, name, videos) for name in self.chosen_splits}
        labels = set()
        for table in tables.values():
            labels |= {record.label for record in table.records}
        classes = sorted(labels)
        return {name: table._replace(classes=classes) for name, table in tables.items()}

    def encode(self, record: Record) -> Encoded:
        content = record.inputs["video"].read_bytes()
        return Encoded({"mp4": content}, content)


def _table(folder: Path, split: str, videos: Mapping[str, Path]) -> Table:
    table = find(folder, f"{split}.csv", what="the labels")
    records = []
    for where, row in read_rows(table, "label", "youtube_id", "time_start", "time_end"):
        label = row["label"]
        video = row["youtube_id"]
        start = whole_number(row["time_start"], where)
        end = whole_number(row["time_end"], where)
        name = f"{video}_{start:06d}_{end:06d}"
        record = Record(
            key=f"kinetics_{name}",
            source=f"Kinetics {split}",
            inputs={"video": videos.get(name), "text": [label]},
            targets={"label": label},
            about={"license": LICENSE, "youtube_id": video, "start": start},
        )
        records.append(record)
    return Table(table, records)


layout = Kinetics()
