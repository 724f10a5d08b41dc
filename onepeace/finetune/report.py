"""HTML report of a fine-tuning: the data, the gains, errors, and commands to try."""

import base64
import io
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from onepeace.config import to_yaml
from onepeace.data.sample import Sample
from onepeace.datasets.arrow import is_arrow
from onepeace.files.atomic import write_text_atomic
from onepeace.files.table import format_table
from onepeace.finetune.average import Average
from onepeace.finetune.figures import HEAD, Answers, by_class, confident_errors, confusions, gains, samples_of, score
from onepeace.finetune.settings import head_names
from onepeace.finetune.split import FILE, SplitSummary
from onepeace.hub.folder import read_config
from onepeace.processors import ImageProcessor
from onepeace.train.recipe import Recipe

REPORT = "report.html"
ERRORS = 16
"""Maximum number of errors shown per set."""
CONFUSED = 20
"""Classes of the confusion matrix: those with the most errors."""
THUMBNAIL = 160
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68em; margin: 2em auto; padding: 0 1em; color: #222 }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em }
table { border-collapse: collapse } td { padding: .25em .8em; text-align: right; border-bottom: 1px solid #ddd }
tr:first-child { font-weight: bold } td.text { text-align: left }
.matrix tr:first-child td + td { writing-mode: vertical-rl; padding: .6em .2em; text-align: left }
.cards { display: flex; flex-wrap: wrap; gap: 1em } figure { margin: 0; width: 10.5em }
figure img { max-width: 100%; border-radius: 4px } figure audio { width: 100% } figcaption { font-size: .85em }
pre { background: #f4f4f4; padding: .8em; overflow-x: auto }
"""


@dataclass(frozen=True)
class Result:
    """Result of one way to train."""

    way: str
    """A key of `WAYS`, or "" if only one was trained."""
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


def note(parts: SplitSummary) -> str:
    """How to read the figures."""
    return (
        f"In parentheses: 95 % intervals, by a bootstrap over groups of {parts.kind} (few groups give wide ones). That "
        "of a figure is for as many other files, that of a gain is paired. A model without a head chooses by the class "
        "names."
    )


def table(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """The figures of the held-out part: the head, and a row for each figure; a column for each of several ways."""
    found = [gains(result.before, result.after) for result in results]
    head = ("set", "metric", "before", *(result.way or "after" for result in results))
    rows = []
    for same in zip(*found, strict=True):
        rows.append((same[0].set, same[0].metric, str(same[0].before), *(str(one.after) for one in same)))
    if len(results) == 1:
        return [(*head, "gain"), *((*row, one.gain.signed) for row, one in zip(rows, found[0], strict=True))]
    times = ("training", "seconds", "", *(f"{result.seconds:.0f}" for result in results))
    return [head, *rows, times]


def as_text(results: Sequence[Result]) -> str:
    """The table for a terminal."""
    head, *rows = table(results)
    return format_table(head, rows, right=range(2, len(head)))


def write_report(result: Result, source: Path, model: str, data: Path, parts: SplitSummary) -> None:
    """Write report.html, a self-contained page.

    Args:
        source: the user's folder or table.
        model: name of the initial model.
        data: folder of the shards.
        parts: contents of the shards.
    """
    title = escape(f"Fine-tuning on {source.name}{f' ({result.way})' if result.way else ''}")
    content = [
        f"<h1>{title}</h1>",
        f"<p>{escape(parts.found)}; {escape(parts.described())}. From the model {escape(model)}, "
        f"{result.recipe.schedule.steps} steps in {result.seconds:.0f} s. Weights "
        f"{escape(result.average.described())}.</p>",
        "<h2>On the part that was held out</h2>",
        _html_table(table([result]), text=2),
        f"<p>{note(parts)}</p>",
    ]
    for before, after in zip(result.before, result.after, strict=True):
        if parts.labels and after.set.endswith(HEAD):
            content += _classes(before, after)
    for pair in parts.pairs("val"):
        samples = samples_of(data, pair)
        for before, after in zip(result.before, result.after, strict=True):
            asked_for = after.set.endswith(HEAD) if parts.labels else after.modality != "text"
            if after.pair == pair and asked_for:
                content += _errors(samples, before, after)
    if parts.left_out:
        content.append(f"<h2>{len(parts.left_out)} left out</h2><ul>")
        content += [f"<li>{escape(where)}: {escape(reason)}</li>" for where, reason in parts.left_out]
        content.append("</ul>")
    commands = "\n".join(commands_to_try(result, source, parts))
    content.append(f"<h2>Try it</h2><pre>{escape(commands)}</pre>")
    content.append(f"<details><summary>The recipe</summary><pre>{escape(to_yaml(result.recipe))}</pre></details>")
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>\n'
    write_text_atomic(result.report, page + "\n".join(content) + "\n</html>\n")


def best(results: Sequence[Result]) -> Result:
    """The result with the highest figures."""
    return max(results, key=lambda result: score(result.after))


def commands_to_try(result: Result, source: Path, parts: SplitSummary) -> list[str]:
    """Commands that use the new model on the user's own files; none if they lie in the cells of a data set."""
    if is_arrow(source):
        return []
    model = shlex.quote(str(result.folder / "model"))
    folder = shlex.quote(str(source if source.is_dir() else source.parent))
    text = shlex.quote(parts.labels[0] if parts.labels else "a dog")
    # The initial model may already have had heads.
    several = len(read_config(result.folder / "model").model.heads) > 1
    classify = [
        f"onepeace classify {folder} --model {model}" + f" --head {head}" * several
        for head in head_names(parts).values()
    ]
    return [f"onepeace search {folder} --text {text} --model {model}", *classify]


def _html_table(rows: Sequence[Sequence[str]], text: int, kind: str = "") -> str:
    """A table with its head; the first ``text`` columns are aligned to the left."""
    found = []
    for row in rows:
        cells = "".join(f"<td{' class=text' * (i < text)}>{escape(cell)}</td>" for i, cell in enumerate(row))
        found.append(f"<tr>{cells}</tr>")
    return f"<table class='{kind}'>{''.join(found)}</table>"


def _classes(before: Answers, after: Answers) -> list[str]:
    """The figures of each class, and the confusion matrix."""
    groups = Counter(label for label, _ in {*zip(after.labels, after.groups, strict=True)})
    rows = [("class", "files", "groups", "before", "after", "gain")]
    rows += [
        (one.metric, str(n), str(groups[one.metric]), str(one.before), str(one.after), one.gain.signed)
        for n, one in by_class(before, after)
    ]
    classes, counts = confusions(after, CONFUSED)
    matrix = [("is \\ called", *classes)]
    matrix += [(label, *(str(n) if n else "" for n in row)) for label, row in zip(classes, counts, strict=True)]
    return [
        f"<h2>By class: {escape(after.set)}</h2>", _html_table(rows, text=1),
        f"<h2>Confusion matrix: {escape(after.set)}</h2>", _html_table(matrix, text=1, kind="matrix"),
    ]  # fmt: skip


def _errors(samples: Sequence[Sample], before: Answers, after: Answers) -> list[str]:
    """Cards of the most confident errors, or for captions, of the queries that rank their own item lowest."""
    if after.labels:
        errors = confident_errors(after)
        title = f"error{'s' * (len(errors) != 1)}, the most confident first"
        words = {i: f"{after.labels[i]}, called {after.said[i]} ({after.confidence[i]:.0%})" for i in errors}
    else:
        errors = sorted((i for i, rank in enumerate(after.ranks) if rank > 1), key=lambda i: -after.ranks[i])
        title = f"{'does not rank its' if len(errors) == 1 else 'do not rank their'} own item first, the worst first"
        own = {i: (samples[i].captions or [samples[i].key])[0] for i in errors}
        words = {i: f"place {after.ranks[i]}, before {before.ranks[i]}: {own[i]}" for i in errors}
    cards = [_card(samples[i], after.modality, words[i]) for i in errors[:ERRORS]]
    return [f"<h2>{len(errors)} {title}: {escape(after.set)}</h2>", "<div class='cards'>", *cards, "</div>"]


def _card(sample: Sample, modality: str, words: str) -> str:
    name = escape(str(sample.targets[FILE]))
    return (
        f"<figure>{_media(modality, sample)}<figcaption>{escape(words)}<br><small>{name}</small></figcaption></figure>"
    )


def _media(modality: str, sample: Sample) -> str:
    """The item itself: a small picture, or a sound to play."""
    content = sample.inputs[modality]
    if modality == "audio":
        return f'<audio controls preload="none" src="{_data("audio/*", content)}"></audio>'
    picture = ImageProcessor().load(content)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return f'<img alt="" src="{_data("image/jpeg", file.getvalue())}">'


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
