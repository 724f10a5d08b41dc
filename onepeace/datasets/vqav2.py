"""VQA 2.0 (Goyal, Khot, Summers-Stay, Batra, Parikh, CVPR 2017)."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from onepeace.datasets.coco import photographs_by_id
from onepeace.datasets.layout import HeldOut, OfficialSplits, Record, Split, option, present
from onepeace.datasets.pictures import SharedPhotographs
from onepeace.datasets.reading import find, json_list
from onepeace.datasets.vqa_answers import normalize_answer, soft_scores
from onepeace.errors import UserError

LICENSE = "questions and answers CC BY 4.0; photographs under their Flickr licences"
UNANSWERED = ("test2015", "test-dev2015")


class _Question(NamedTuple):
    key: int
    image_id: int
    text: str


class _Answers(NamedTuple):
    common: str
    """What most people answered, normalised."""
    given: list[str]
    """What the ten people answered, as it is written."""
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

    family = "vqav2"
    train: tuple[str, ...] = option(("train2014",), "official splits that are training data")
    val: tuple[str, ...] = option(("val2014",), "official splits that are validation data")
    answers: int = option(3129, "so many of the most frequent answers; of train2014 and val2014 those given 9 times")

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        chosen = self.chosen("val/vqav2/vqav2", "train/vqav2/vqav2")
        questions = {name: _questions(folder, name) for name, _ in chosen}
        answers = {name: _answers(folder, name) for name, _ in chosen if name not in UNANSWERED}
        counts = Counter(answer.common for of_split in answers.values() for answer in of_split.values())
        classes = sorted(counts, key=lambda answer: (-counts[answer], answer))[: self.answers]
        for name, shards in chosen:
            table, rows = questions[name]
            pictures = photographs_by_id(folder, name.replace("-dev", ""))
            records = _records(rows, table, answers.get(name), pictures, {*classes}, name)
            found = present(records, "image", table, "its questions are about other photographs")
            yield Split(f"{shards}_{name}", found, self.encode, classes)

    def group(self, record: Record) -> tuple[str, str]:
        return "vqav2", str(record.about["image_id"])


def _questions(folder: Path, split: str) -> tuple[Path, list[_Question]]:
    path = find(folder, f"v2_OpenEnded_mscoco_{split}_questions.json", what="the questions")
    questions = []
    for i, row in enumerate(json_list(path, "questions"), 1):
        try:
            text = " ".join(row["question"].split())
            questions.append(_Question(int(row["question_id"]), int(row["image_id"]), text))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: question {i} has no question_id, image_id and question: {row!r:.100}") from error
    return path, questions


def _answers(folder: Path, split: str) -> dict[int, _Answers]:
    path = find(folder, f"v2_mscoco_{split}_annotations.json", what="the answers")
    answers = {}
    for i, row in enumerate(json_list(path, "annotations"), 1):
        try:
            given = [str(answer["answer"]) for answer in row["answers"]]
            about = {name: row[name] for name in ("question_type", "answer_type") if name in row}
            common = normalize_answer(row["multiple_choice_answer"])
            answers[int(row["question_id"])] = _Answers(common, given, about)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path}: annotation {i} has no question_id, multiple_choice_answer and answers: {row!r:.100}"
            ) from error
    return answers


def _records(
    questions: list[_Question],
    table: Path,
    answers: Mapping[int, _Answers] | None,
    pictures: Mapping[int, Path],
    classes: set[str],
    split: str,
) -> list[Record]:
    records = []
    for question in questions:
        about = {"license": LICENSE, "question_id": question.key, "image_id": question.image_id}
        targets: dict[str, Any] = {}
        if answers is not None:
            if question.key not in answers:
                raise UserError(f"{table}: question {question.key} is not in v2_mscoco_{split}_annotations.json")
            found = answers[question.key]
            about |= found.about
            scores = {answer: score for answer, score in soft_scores(found.given).items() if answer in classes}
            targets = {"answers": scores, "annotations": found.given}
        inputs = {"image": pictures.get(question.image_id), "text": [question.text]}
        records.append(Record(f"vqav2_{question.key}", f"VQA 2.0 {split}", inputs, targets, about))
    return records
