"""VQA 2.0 (Goyal, Khot, Summers-Stay, Batra, Parikh, CVPR 2017)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from onepeace.datasets.coco import photographs_by_id
from onepeace.datasets.layout import HeldOut, OfficialSplits, Record, Table, option
from onepeace.datasets.pictures import SharedPhotographs
from onepeace.datasets.reading import fields, find, json_rows
from onepeace.datasets.vqa_answers import normalize_answer, soft_scores
from onepeace.errors import UserError

LICENSE = "questions and answers CC BY 4.0; photographs under their Flickr licences"
UNANSWERED = ("test2015", "test-dev2015")


class _Answers(NamedTuple):
    common: str
    """Most common answer, normalised."""
    given: list[str]
    """Answers of the ten people, unchanged."""
    about: dict[str, Any]


@dataclass(frozen=True)
class VQAv2(SharedPhotographs, OfficialSplits):
    """VQA 2.0: questions about the photographs of COCO, each answered by ten people, from visualqa.org.

    SOURCE holds, at any depth, v2_OpenEnded_mscoco_SPLIT_questions.json and v2_mscoco_SPLIT_annotations.json, and the
    photographs of COCO in folders named train2014 and val2014 (for val=[test-dev2015] or val=[test2015], whose answers
    are not public, test2015). One sample per question, which is its caption. The target "answers" has the score of each
    answer that is among the most frequent ones of all chosen splits, which are classes.json; the target "annotations"
    has what the ten people answered.
    """

    prefix = "vqav2"
    hint = "its questions are about other photographs"
    train: tuple[str, ...] = option(("train2014",), "official splits that are training data")
    val: tuple[str, ...] = option(("val2014",), "official splits that are validation data")
    answers: int = option(3129, "number of answers kept, the most frequent first; 3129 were given 9 times or more")

    def tables(self, folder: Path, held_out: HeldOut) -> Mapping[str, Table]:
        names = (*self.val, *self.train)
        answers = {name: _answers(folder, name) for name in names if name not in UNANSWERED}
        counts = Counter(answer.common for of_split in answers.values() for answer in of_split.values())
        classes = sorted(counts, key=lambda answer: (-counts[answer], answer))[: self.answers]
        return {name: _table(folder, name, answers.get(name), classes) for name in names}


def _answers(folder: Path, split: str) -> dict[int, _Answers]:
    path = find(folder, f"v2_mscoco_{split}_annotations.json", what="the answers")
    answers = {}
    for where, row in json_rows(path, "annotations"):
        with fields(where, row, "question_id, multiple_choice_answer and answers"):
            given = [str(answer["answer"]) for answer in row["answers"]]
            about = {name: row[name] for name in ("question_type", "answer_type") if name in row}
            common = normalize_answer(row["multiple_choice_answer"])
            answers[int(row["question_id"])] = _Answers(common, given, about)
    return answers


def _table(folder: Path, split: str, answers: Mapping[int, _Answers] | None, classes: Sequence[str]) -> Table:
    table = find(folder, f"v2_OpenEnded_mscoco_{split}_questions.json", what="the questions")
    pictures = photographs_by_id(folder, split.replace("-dev", ""))
    known, records = set(classes), []
    for where, row in json_rows(table, "questions"):
        with fields(where, row, "question_id, image_id and question"):
            text, key, image_id = " ".join(row["question"].split()), int(row["question_id"]), int(row["image_id"])
        about = {"license": LICENSE, "question_id": key, "image_id": image_id}
        targets: dict[str, Any] = {}
        if answers is not None:
            if key not in answers:
                raise UserError(f"{where}: question {key} is not in v2_mscoco_{split}_annotations.json")
            about |= answers[key].about
            given = answers[key].given
            scores = {answer: score for answer, score in soft_scores(given).items() if answer in known}
            targets = {"answers": scores, "annotations": given}
        inputs = {"image": pictures.get(image_id), "text": [text]}
        records.append(Record(f"vqav2_{key}", f"VQA 2.0 {split}", inputs, targets, about))
    return Table(table, records, classes)
