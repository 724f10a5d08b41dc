"""Kinetics (Kay et al., arXiv 1705.06950)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from onepeace.datasets.layout import Encoded, HeldOut, OfficialSplits, Record, Split, option, present
from onepeace.datasets.reading import find, read_rows, whole_number

LICENSE = "list CC BY 4.0; videos belong to their owners"


@dataclass(frozen=True)
class Kinetics(OfficialSplits):
    """Kinetics: ten-second videos of human actions, from github.com/cvdfoundation/kinetics-dataset.

    SOURCE holds train.csv and val.csv (label,youtube_id,time_start,time_end,split) and, at any depth, the videos that
    you have, named ID_START_END.mp4 with six digits each. They go into the shards as they are, KEY.mp4.
    """

    family = "kinetics"
    train: tuple[str, ...] = option(("train",), "official splits that are training data")
    val: tuple[str, ...] = option(("val",), "official splits that are validation data")

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        videos = {path.stem: path for path in sorted(folder.rglob("*.mp4"))}
        tables = {name: find(folder, f"{name}.csv", what="the labels") for name in (*self.val, *self.train)}
        records = {name: _records(table, name, videos) for name, table in tables.items()}
        classes = sorted({record.label for found in records.values() for record in found})
        for name, shards in self.chosen("val/kinetics/kinetics", "train/kinetics/kinetics"):
            found = present(records[name], "video", tables[name], "videos are named ID_START_END.mp4")
            yield Split(f"{shards}_{name}", found, as_it_is, classes=classes)

    def group(self, record: Record) -> tuple[str, str]:
        return "youtube", record.about["youtube_id"]


def as_it_is(record: Record) -> Encoded:
    """The video of a record."""
    content = record.inputs["video"].read_bytes()
    return Encoded({"mp4": content}, content)


def _records(table: Path, split: str, videos: Mapping[str, Path]) -> list[Record]:
    records = []
    for where, row in read_rows(table, "label", "youtube_id", "time_start", "time_end"):
        start, end = (whole_number(row[name], where) for name in ("time_start", "time_end"))
        name = f"{row['youtube_id']}_{start:06d}_{end:06d}"
        about = {"license": LICENSE, "youtube_id": row["youtube_id"], "start": start}
        inputs = {"video": videos.get(name), "text": [row["label"]]}
        records.append(Record(f"kinetics_{name}", f"Kinetics {split}", inputs, {"label": row["label"]}, about))
    return records
