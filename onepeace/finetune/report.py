"""Report of a fine-tuning: a table for the terminal, and report.html with the gains, errors and commands to try."""

import base64
import io
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onepeace.config import to_yaml
from onepeace.data.sample import Sample
from onepeace.datasets.arrow import is_arrow
from onepeace.files.atomic import write_text_atomic
from onepeace.files.table import format_table
from onepeace.finetune.answers import HEAD, Answers, samples_of, score
from onepeace.finetune.auto_recipe import head_names
from onepeace.finetune.average import Average
from onepeace.finetune.figures import Gain, by_class, confident_errors, confusions, gains
from onepeace.finetune.groups import FILE
from onepeace.finetune.split import VAL, SplitSummary
from onepeace.hub.folder import read_config
from onepeace.processors import ImageProcessor
from onepeace.train.recipe import Recipe

REPORT = "report.html"
TEMPLATE = Path(__file__).with_name("report.html")
ERRORS = 16
"""Maximum number of errors shown per set."""
CONFUSED = 20
"""Classes of the confusion matrix: those with the most errors."""
THUMBNAIL = 160
"""Longer side of a picture in the report, in pixels."""
LATER_FILES = (
    "The figures hold for later files that are collected as these were. If these are a selection, such as the first 50 "
    "of each class by name, the figures are of that selection, and other files may do worse: in our test on pictures "
    "in four styles, of which the first by name had one, 94 % of the held-out and 85 % of the other files were right. "
    "Choose the files at random."
)
"""For which files the held-out figures hold (docs/results/finetune.md: pacs, by name)."""

Row = tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """Result of one training method."""

    method: str
    """A key of `METHODS`, or "" if only one was trained."""
    folder: Path
    recipe: Recipe
    average: Average
    seconds: float
    """Time of the training."""
    before: list[Answers]
    after: list[Answers]

    @property
    def report(self) -> Path:
        return self.folder / REPORT


@dataclass(frozen=True)
class Errors:
    """Errors in one set, as the report shows them."""

    title: str
    cards: list[dict[str, str]]
    """Modality, content (a data: address), words and file name of each item."""


def notes(summary: SplitSummary) -> list[str]:
    """How to read the figures, and for which files they hold."""
    intervals = (
        f"In parentheses: 95 % intervals, by a bootstrap over groups of {summary.meaning_of_groups} (few groups "
        "give wide ones). The interval of a figure is where that of as many other files would lie; the interval of a "
        "gain is paired. A model without a head chooses by the class names."
    )
    return [intervals, LATER_FILES]


def table(results: Sequence[Result]) -> list[Row]:
    """The figures of the held-out part: the head, and a row for each figure; a column for each of several methods."""
    if len(results) == 1:
        return _table_of_one(results[0])
    rows: list[Row] = [("set", "metric", "before", *(result.method for result in results))]
    gains_by_method = [gains(result.before, result.after) for result in results]
    for gains_of_figure in zip(*gains_by_method, strict=True):
        first = gains_of_figure[0]
        figures = [str(gain.after) for gain in gains_of_figure]
        rows.append((first.set, first.metric, str(first.before), *figures))
    rows.append(("training", "seconds", "", *(f"{result.seconds:.0f}" for result in results)))
    return rows


def _table_of_one(result: Result) -> list[Row]:
    rows: list[Row] = [("set", "metric", "before", "after", "gain")]
    for gain in gains(result.before, result.after):
        rows.append((gain.set, gain.metric, *_as_texts(gain)))
    return rows


def _as_texts(gain: Gain) -> Row:
    """The cells before, after and gain."""
    return (str(gain.before), str(gain.after), gain.gain.signed)


def as_text(results: Sequence[Result]) -> str:
    """The table for a terminal."""
    head, *rows = table(results)
    return format_table(head, rows, right=range(2, len(head)))


def write_report(
    result: Result,
    source: Path,
    model: str,
    data: Path,
    summary: SplitSummary,
) -> None:
    """Write report.html, a self-contained page.

    Args:
        source: the user's folder or table.
        model: name of the initial model.
        data: folder of the shards.
        summary: contents of the shards.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    page = template.render(
        title=f"Fine-tuning on {source.name}" + (f" ({result.method})" if result.method else ""),
        model=model,
        result=result,
        summary=summary,
        figures=table([result]),
        notes=notes(summary),
        sets_of_classes=_sets_of_classes(result, summary),
        sets_of_errors=_sets_of_errors(result, data, summary),
        commands=commands_to_try(result, source, summary),
        recipe=to_yaml(result.recipe),
    )
    write_text_atomic(result.report, page)


def best(results: Sequence[Result]) -> Result:
    """The result with the highest figures."""
    return max(results, key=lambda result: score(result.after))


def commands_to_try(
    result: Result,
    source: Path,
    summary: SplitSummary,
) -> list[str]:
    """Commands that use the new model on the user's own files; none if they lie in the cells of a data set."""
    if is_arrow(source):
        return []
    model = shlex.quote(str(result.folder / "model"))
    folder = shlex.quote(str(source if source.is_dir() else source.parent))
    text = shlex.quote(summary.labels[0] if summary.labels else "a dog")
    commands = [f"onepeace search {folder} --text {text} --model {model}"]
    # The initial model may already have had heads.
    has_several_heads = len(read_config(result.folder / "model").model.heads) > 1
    for head in head_names(summary).values():
        command = f"onepeace classify {folder} --model {model}"
        if has_several_heads:
            command += f" --head {head}"
        commands.append(command)
    return commands


def _sets_of_classes(result: Result, summary: SplitSummary) -> list[dict[str, Any]]:
    """Name, figures by class and confusion matrix of each set that the head answered."""
    if not summary.labels:
        return []
    sets = []
    for before, after in zip(result.before, result.after, strict=True):
        if after.set.endswith(HEAD):
            classes = _class_table(before, after)
            sets.append({"name": after.set, "classes": classes, "matrix": _matrix(after)})
    return sets


def _class_table(before: Answers, after: Answers) -> list[Row]:
    labels_and_groups = set(zip(after.labels, after.groups, strict=True))
    num_groups = Counter(label for label, _ in labels_and_groups)
    rows: list[Row] = [("class", "files", "groups", "before", "after", "gain")]
    for num_files, gain in by_class(before, after):
        label = gain.metric
        rows.append((label, str(num_files), str(num_groups[label]), *_as_texts(gain)))
    return rows


def _matrix(after: Answers) -> list[Row]:
    """Confusion matrix as text; cells of 0 are empty."""
    classes, counts = confusions(after, CONFUSED)
    rows: list[Row] = [("is \\ called", *classes)]
    for label, counts_of_label in zip(classes, counts.tolist(), strict=True):
        cells = [str(count or "") for count in counts_of_label]
        rows.append((label, *cells))
    return rows


def _sets_of_errors(
    result: Result,
    data: Path,
    summary: SplitSummary,
) -> list[Errors]:
    """The errors of each set: of the head in sets of classes, else of the searches by items."""
    sets = []
    for modalities in summary.combinations(VAL):
        samples = samples_of(data, modalities)
        for before, after in zip(result.before, result.after, strict=True):
            is_shown = after.set.endswith(HEAD) if summary.labels else after.modality != "text"
            if after.modalities != modalities or not is_shown:
                continue
            if after.labels:
                sets.append(_class_errors(samples, after))
            else:
                sets.append(_search_errors(samples, before, after))
    return sets


def _class_errors(samples: Sequence[Sample], after: Answers) -> Errors:
    """The most confident errors."""
    errors = confident_errors(after)
    cards = []
    for number in errors[:ERRORS]:
        words = f"{after.labels[number]}, called {after.predicted[number]} ({after.confidence[number]:.0%})"
        cards.append(_card(samples[number], after.modality, words))
    noun = "error" if len(errors) == 1 else "errors"
    return Errors(f"{len(errors)} {noun}, the most confident first: {after.set}", cards)


def _search_errors(
    samples: Sequence[Sample],
    before: Answers,
    after: Answers,
) -> Errors:
    """The queries that rank their own item lowest."""
    errors = [number for number, rank in enumerate(after.ranks) if rank > 1]
    errors.sort(key=lambda number: -after.ranks[number])
    cards = []
    for number in errors[:ERRORS]:
        sample = samples[number]
        caption = sample.captions[0] if sample.captions else sample.key
        words = f"place {after.ranks[number]}, before {before.ranks[number]}: {caption}"
        cards.append(_card(sample, after.modality, words))
    what = "does not rank its" if len(errors) == 1 else "do not rank their"
    return Errors(f"{len(errors)} {what} own item first, the worst first: {after.set}", cards)


def _card(
    sample: Sample,
    modality: str,
    words: str,
) -> dict[str, str]:
    content = sample.inputs[modality]
    if modality == "audio":
        address = _data_address("audio/*", content)
    else:
        address = _data_address("image/jpeg", _thumbnail(content))
    return {
        "modality": modality,
        "address": address,
        "words": words,
        "file": sample.targets[FILE],
    }


def _thumbnail(content: bytes) -> bytes:
    """A small JPEG of a picture."""
    picture = ImageProcessor().load(content)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return file.getvalue()


def _data_address(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
