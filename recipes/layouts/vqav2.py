"""VQA 2.0 (Goyal, Khot, Summers-Stay, Batra, Parikh, CVPR 2017)."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from coco_files import photographs_by_id

from onepeace.config.reader import Count
from onepeace.datasets.layout import HeldOut, OfficialSplits, Record, Table, option
from onepeace.datasets.media import SharedPhotographs
from onepeace.datasets.reading import fields, find, json_rows
from onepeace.errors import UserError
from onepeace.evaluate.protocols.vqa_answers import normalize_answer

LICENSE = "questions and answers CC BY 4.0; photographs under their Flickr licences"
UNANSWERED = ("test2015", "test-dev2015")


class Answers(NamedTuple):
    """Answers of ten people to a question."""

    common: str
    """Most common answer, normalised."""
    of_people: list[str]
    """Their answers, unchanged."""
    about: dict[str, Any]
    """Types of the question and of its answers."""


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
    size: Count = option(480, "short side of the pictures in pixels")
    train: tuple[str, ...] = option(("train2014",), "official splits that are training data")
    val: tuple[str, ...] = option(("val2014",), "official splits that are validation data")
    answers: Count = option(3129, "number of answers kept, the most frequent first; 3129 were given 9 times or more")

    def tables(self, folder: Path, held_out: HeldOut) -> Mapping[str, Table]:
        answers_by_split = {}
        counts: Counter[str] = Counter()
        for split in self.chosen_splits:
            if split not in UNANSWERED:
                answers_by_split[split] = _answers(folder, split)
                counts.update(answers.common for answers in answers_by_split[split].values())
        by_frequency = sorted(counts, key=lambda answer: (-counts[answer], answer))
        classes = by_frequency[: self.answers]
        tables = {}
        for split in self.chosen_splits:
            tables[split] = _table(folder, split, answers_by_split.get(split), classes)
        return tables


def _answers(folder: Path, split: str) -> dict[int, Answers]:
    """The answers of a split by the id of the question."""
    path = find(folder, f"v2_mscoco_{split}_annotations.json", what="the answers")
    answers = {}
    for where, row in json_rows(path, "annotations"):
        with fields(where, row, "question_id, multiple_choice_answer and answers"):
            answers[int(row["question_id"])] = Answers(
                common=normalize_answer(row["multiple_choice_answer"]),
                of_people=[str(answer["answer"]) for answer in row["answers"]],
                about={name: row[name] for name in ("question_type", "answer_type") if name in row},
            )
    return answers


def _table(
    folder: Path,
    split: str,
    answers: Mapping[int, Answers] | None,
    classes: Sequence[str],
) -> Table:
    table = find(folder, f"v2_OpenEnded_mscoco_{split}_questions.json", what="the questions")
    photographs = photographs_by_id(folder, split.replace("-dev", ""))
    class_names = set(classes)
    records = []
    for where, row in json_rows(table, "questions"):
        with fields(where, row, "question_id, image_id and question"):
            question = " ".join(row["question"].split())
            question_id = int(row["question_id"])
            image_id = int(row["image_id"])
        about = {"license": LICENSE, "question_id": question_id, "image_id": image_id}
        targets: dict[str, Any] = {}
        if answers is not None:
            if question_id not in answers:
                raise UserError(f"question {question_id} is not in v2_mscoco_{split}_annotations.json", where=where)
            about |= answers[question_id].about
            targets = _targets(answers[question_id], class_names)
        record = Record(
            key=f"vqav2_{question_id}",
            source=f"VQA 2.0 {split}",
            inputs={"image": photographs.get(image_id), "text": [question]},
            targets=targets,
            about=about,
        )
        records.append(record)
    return Table(table, records, classes)


def _targets(answers: Answers, class_names: Collection[str]) -> dict[str, Any]:
    """The scores of the answers that are classes, and all answers."""
    scores = _soft_scores(answers.of_people)
    return {
        "answers": {answer: score for answer, score in scores.items() if answer in class_names},
        "annotations": answers.of_people,
    }


def _soft_scores(answers: Iterable[str]) -> dict[str, float]:
    """Score of each normalised answer: 0.3, 0.6, 0.9 and 1 if given by one, two, three and more of ten people.

    This is the mean of min(1, matches / 3) over the ten groups of nine people (Teney et al., arXiv 1708.02711, as in
    the training of OFA and ONE-PEACE).
    """
    counts = Counter(map(normalize_answer, answers))
    return {answer: min(1.0, round(0.3 * count, 1)) for answer, count in counts.items()}


layout = VQAv2()
