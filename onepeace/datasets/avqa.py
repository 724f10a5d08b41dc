"""AVQA (Yang et al., ACM Multimedia 2022)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from onepeace.datasets.layout import HeldOut, OfficialSplits, Record, Split, option, present
from onepeace.datasets.reading import find, read_json
from onepeace.datasets.sounds import HINT, Sounds, sounds_below
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

    family = "avqa"
    train: tuple[str, ...] = option(("train",), "official splits that are training data")
    val: tuple[str, ...] = option(("val",), "official splits that are validation data")

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        sounds = {path.stem: path for path in sounds_below(folder)}
        splits = []
        for name, shards in self.chosen("val/avqa/avqa", "train/avqa/avqa"):
            table = find(folder, f"{name}_qa.json", what="the questions")
            records = present(_records(table, name, sounds), "audio", table, HINT)
            splits.append(Split(f"{shards}_{name}", records, self.encode))
        yield from splits  # all tables are read before the first shard is written


def _records(table: Path, split: str, sounds: Mapping[str, Path]) -> list[Record]:
    rows = read_json(table)
    if not isinstance(rows, list):
        raise UserError(f"{table}: expected a list of questions, found {type(rows).__name__}")
    records = []
    for i, row in enumerate(rows, 1):
        try:
            key, name, question = int(row["id"]), str(row["video_name"]), " ".join(row["question_text"].split())
            candidates, choice = [" ".join(answer.split()) for answer in row["multi_choice"]], int(row["answer"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = "id, video_name, question_text, multi_choice and answer"
            raise UserError(f"{table}: question {i} has no {what}: {row!r:.100}") from error
        if not 0 <= choice < len(candidates):
            raise UserError(f"{table}: question {i} has answer {choice} of {len(candidates)}, which count from 0")
        about = {"license": LICENSE, "youtube_id": name.rpartition("_")[0], "file_name": name}
        about |= {field: row[field] for field in ("question_relation", "question_type") if field in row}
        inputs = {"audio": sounds.get(name), "text": [question]}
        targets = {"candidates": candidates, "choice": choice}
        records.append(Record(f"avqa_{split}_{key}", f"AVQA {split}", inputs, targets, about))
    return records
