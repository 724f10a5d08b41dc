"""AVQA (Yang et al., ACM Multimedia 2022)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onepeace.datasets.layout import HeldOut, OfficialSplits, Record, Table, option
from onepeace.datasets.media import SOUND_HINT, Sounds, sounds_below
from onepeace.datasets.reading import fields, find, json_rows
from onepeace.errors import UserError

LICENSE = "questions: research use (AVQA terms); sounds belong to the owners of the videos"


@dataclass(frozen=True)
class AVQA(Sounds, OfficialSplits):
    """AVQA: questions about ten-second videos with four answers to choose from, from mn.cs.tsinghua.edu.cn/avqa.

    SOURCE holds train_qa.json and val_qa.json and, at any depth, the sounds that you have: wav, flac, ogg, opus or mp3,
    cut to their ten seconds and named as the field video_name says, such as -HG3Omg_89c_000030.wav (the names of
    VGGSound). Videos are not read: extract their sound first. The question is the caption; the targets are the answers,
    "candidates", and the number of the right one, "choice".
    """

    prefix = "avqa"
    hint = SOUND_HINT
    train: tuple[str, ...] = option(("train",), "official splits that are training data")
    val: tuple[str, ...] = option(("val",), "official splits that are validation data")

    def tables(self, folder: Path, held_out: HeldOut) -> Mapping[str, Table]:
        sounds = {path.stem: path for path in sounds_below(folder)}
        return {name: _table(folder, name, sounds) for name in self.chosen_splits}


def _table(folder: Path, split: str, sounds: Mapping[str, Path]) -> Table:
    table = find(folder, f"{split}_qa.json", what="the questions")
    records = []
    for where, row in json_rows(table):
        with fields(where, row, "id, video_name, question_text, multi_choice and answer"):
            key = int(row["id"])
            name = str(row["video_name"])
            question = " ".join(row["question_text"].split())
            candidates = [" ".join(answer.split()) for answer in row["multi_choice"]]
            choice = int(row["answer"])
        if not 0 <= choice < len(candidates):
            raise UserError(f"answer {choice} of {len(candidates)}, which count from 0", where=where)
        facts = {"license": LICENSE, "youtube_id": name.rpartition("_")[0], "file_name": name}
        for field in ("question_relation", "question_type"):
            if field in row:
                facts[field] = row[field]
        record = Record(
            key=f"avqa_{split}_{key}",
            source=f"AVQA {split}",
            inputs={"audio": sounds.get(name), "text": [question]},
            targets={"candidates": candidates, "choice": choice},
            about=facts,
        )
        records.append(record)
    return Table(table, records)


layout = AVQA()
