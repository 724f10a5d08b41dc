"""Report of a fine-tuning: a table for the terminal, and report.html with the gains, errors and commands to try."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from onepeace.config import to_yaml
from onepeace.datasets.parquet import is_parquet
from onepeace.files.atomic import write_text_atomic
from onepeace.files.table import format_table
from onepeace.finetune.answers import HEAD, Answers, Gain, by_class, gains
from onepeace.finetune.average import Average
from onepeace.finetune.recipe import head_names
from onepeace.finetune.split import SplitSummary
from onepeace.hub.folder import read_config
from onepeace.train.recipe import Recipe

REPORT = "report.html"
TEMPLATE = Path(__file__).with_name("report.html")
ERRORS = 100
"""Maximum number of errors listed per set."""

Row = tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """Result of a fine-tuning."""

    folder: Path
    summary: SplitSummary
    recipe: Recipe
    average: Average
    seconds: float
    """Time of the training."""
    before: list[Answers]
    after: list[Answers]

    @property
    def report(self) -> Path:
        return self.folder / REPORT


class Table(NamedTuple):
    """A table of the report; the first row has the names of the columns."""

    title: str
    rows: list[Row]
    texts: int
    """Number of the first columns whose cells are text rather than numbers."""


def note(summary: SplitSummary) -> str:
    """How to read the figures."""
    return (
        f"In parentheses: 95 % intervals, by a bootstrap over groups of {summary.meaning_of_groups} (few groups give "
        "wide ones). The interval of a figure is where that of as many other files would lie; the interval of a gain "
        "is paired. A model without a head chooses by the class names."
    )


def figures(result: Result) -> list[Row]:
    """The figures of the held-out part: the head, and a row for each."""
    rows: list[Row] = [("set", "metric", "before", "after", "gain")]
    for gain in gains(result.before, result.after):
        rows.append((gain.set, gain.metric, *_as_texts(gain)))
    return rows


def _as_texts(gain: Gain) -> Row:
    """The cells before, after and gain."""
    return (str(gain.before), str(gain.after), gain.gain.signed)


def as_text(result: Result) -> str:
    """The figures for a terminal."""
    head, *rows = figures(result)
    return format_table(head, rows, right=range(2, len(head)))


def write_report(result: Result, source: Path, model: str) -> None:
    """Write report.html, a self-contained page.

    Args:
        source: the user's folder or table.
        model: name of the initial model.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    page = template.render(
        title=f"Fine-tuning on {source.name}",
        model=model,
        result=result,
        summary=result.summary,
        tables=[Table("On the part that was held out", figures(result), texts=2), *_tables(result)],
        note=note(result.summary),
        commands=commands_to_try(result, source),
        recipe=to_yaml(result.recipe),
    )
    write_text_atomic(result.report, page)


def commands_to_try(result: Result, source: Path) -> list[str]:
    """Commands that use the new model on the user's own files; none if they lie in the cells of a data set."""
    if is_parquet(source):
        return []
    labels = result.summary.labels
    model = shlex.quote(str(result.folder / "model"))
    folder = shlex.quote(str(source if source.is_dir() else source.parent))
    text = shlex.quote(labels[0] if labels else "a dog")
    commands = [f"onepeace search {folder} --text {text} --model {model}"]
    # The initial model may already have had heads.
    has_several_heads = len(read_config(result.folder / "model").model.heads) > 1
    for head in head_names(result.summary).values():
        command = f"onepeace classify {folder} --model {model}"
        if has_several_heads:
            command += f" --head {head}"
        commands.append(command)
    return commands


def _tables(result: Result) -> Iterator[Table]:
    """The classes and the errors: of the head in sets of classes, else of each search."""
    for before, after in zip(result.before, result.after, strict=True):
        if not after.labels:
            yield _search_errors(before, after)
        elif after.set.endswith(HEAD):
            yield Table(f"By class: {after.set}", _class_rows(before, after), texts=1)
            yield _class_errors(after)


def _class_rows(before: Answers, after: Answers) -> list[Row]:
    """Figures by class; a class with one group has no interval, as nothing is known about others like it."""
    rows: list[Row] = [("class", "files", "groups", "before", "after", "gain")]
    for label, num_files, num_groups, gain in by_class(before, after):
        cells = _as_texts(gain)
        if num_groups == 1:
            cells = (f"{gain.before.value:.1%}", f"{gain.after.value:.1%}", f"{gain.gain.value:+.1%}")
        rows.append((label, str(num_files), str(num_groups), *cells))
    return rows


def _class_errors(after: Answers) -> Table:
    """The most confident errors."""
    wrong = [number for number, rank in enumerate(after.ranks) if rank > 1]
    wrong.sort(key=lambda number: -after.confidence[number])
    rows: list[Row] = [("file", "is", "called", "confidence")]
    for number in wrong[:ERRORS]:
        called = (after.labels[number], after.predicted[number], f"{after.confidence[number]:.0%}")
        rows.append((after.names[number], *called))
    return Table(f"{_counted(wrong)}, the most confident first: {after.set}", rows, texts=3)


def _search_errors(before: Answers, after: Answers) -> Table:
    """The queries that rank what belongs to them lowest."""
    wrong = [number for number, rank in enumerate(after.ranks) if rank > 1]
    wrong.sort(key=lambda number: -after.ranks[number])
    rows: list[Row] = [("query", "place before", "place after")]
    for number in wrong[:ERRORS]:
        rows.append((after.names[number], str(before.ranks[number]), str(after.ranks[number])))
    title = f"{_counted(wrong)}, whose own item is not the first, the worst first: {after.set}, {after.metric_at(1)}"
    return Table(title, rows, texts=1)


def _counted(wrong: Sequence[int]) -> str:
    return "1 error" if len(wrong) == 1 else f"{len(wrong)} errors"
