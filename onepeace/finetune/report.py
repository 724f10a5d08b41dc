"""The page that a fine-tuning ends with: what was learned from, what it gained, examples, curves, commands."""

import base64
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from onepeace.data.sample import Sample
from onepeace.errors import UserError
from onepeace.evaluate.compare import Difference, compare, read_results
from onepeace.evaluate.report import between, shown
from onepeace.files.atomic import write_text_atomic
from onepeace.finetune import measure
from onepeace.finetune.average import Average
from onepeace.finetune.settings import head_names
from onepeace.hub.folder import read_config
from onepeace.processors import ImageProcessor
from onepeace.train.curves import draw, read_curves
from onepeace.train.recipe import Recipe, to_yaml

if TYPE_CHECKING:
    from onepeace.finetune.run import FineTuning

EXAMPLES = 8
"""Of each kind: those that moved most."""
THUMBNAIL = 160
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68em; margin: 2em auto; padding: 0 1em; color: #222 }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em }
table { border-collapse: collapse } td, th { padding: .25em .8em; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, td:nth-child(2), th:first-child, th:nth-child(2) { text-align: left }
.good { color: #0a7d38 } .bad { color: #b3261e }
.cards { display: flex; flex-wrap: wrap; gap: 1em } figure { margin: 0; width: 10.5em }
figure img { max-width: 100%; border-radius: 4px } figure audio { width: 100% } figcaption { font-size: .85em }
img.curves { max-width: 100% } pre { background: #f4f4f4; padding: .8em; overflow-x: auto }
"""


def write_report(
    tuning: "FineTuning",
    recipe: Recipe,
    average: Average,
    counts: Mapping[str, int],
    labels: Sequence[str],
    pairs: Sequence[str],
) -> Path:
    """Write report.html, which needs no other file, and return its path."""
    from onepeace.finetune.run import AFTER, BEFORE, PARTS, REPORT

    about = json.loads((tuning.data / PARTS).read_text(encoding="utf-8"))
    before, after = (read_results(tuning.out / name) for name in (BEFORE, AFTER))
    parts = [
        f"<h1>Fine-tuning on {escape(tuning.source.name)}</h1>",
        f"<p>{escape(about['found'])}; {_parts(counts)}. From the model {escape(tuning.model)}, "
        f"{recipe.schedule.steps} steps.</p>",
        "<h2>On the part that was held out</h2>",
        _table(compare(before, after)),
        "<p>The intervals are of other items of the same kind (bootstrap over the items).</p>",
        f"<p>Weights {escape(average.described())}.</p>",
        _curves(tuning.out),
    ]
    for pair in pairs:
        samples = measure.held_out(tuning.data, pair)
        first, second = (measure.ranks(results, pair, bool(labels)) for results in (before, after))
        parts += _examples(pair, samples, first, second, bool(labels))
    if about["left_out"]:
        parts.append(f"<h2>{len(about['left_out'])} left out</h2><ul>")
        parts += [f"<li>{escape(where)}: {escape(reason)}</li>" for where, reason in about["left_out"]]
        parts.append("</ul>")
    commands = "\n".join(commands_to_try(tuning))
    parts.append(f"<h2>Try it</h2><pre>{escape(commands)}</pre>")
    parts.append(f"<details><summary>The recipe</summary><pre>{escape(to_yaml(recipe))}</pre></details>")
    title = f"<title>Fine-tuning on {escape(tuning.source.name)}</title>"
    page = f'<!doctype html><html lang="en"><meta charset="utf-8">{title}<style>{STYLE}</style>\n'
    path = tuning.out / REPORT
    write_text_atomic(path, page + "\n".join(parts) + "\n</html>\n")
    return path


def commands_to_try(tuning: "FineTuning") -> list[str]:
    """Commands that use the new model on the user's own files."""
    from onepeace.finetune.run import LABELS, PARTS

    model = shlex.quote(str(tuning.out / "model"))
    folder = shlex.quote(str(tuning.source if tuning.source.is_dir() else tuning.source.parent))
    labels = json.loads((tuning.data / LABELS).read_text(encoding="utf-8"))
    search = f"onepeace search {folder} --text {shlex.quote(labels[0] if labels else 'a dog')} --model {model}"
    if not labels:
        return [search]
    counts = json.loads((tuning.data / PARTS).read_text(encoding="utf-8"))["counts"]
    heads = head_names(name.partition("/")[2] for name in counts).values()
    # The model it started from may have had heads of its own.
    several = len(read_config(tuning.out / "model").model.heads) > 1
    return [search, *(f"onepeace classify {folder} --model {model}" + f" --head {head}" * several for head in heads)]


def _parts(counts: Mapping[str, int]) -> str:
    train, choose, val = (
        sum(n for name, n in counts.items() if name.startswith(part)) for part in ("train/", "choose/", "val/")
    )
    return f"{train} to learn from, {f'{choose} to choose by, ' * bool(choose)}{val} held out"


def _table(differences: Sequence[Difference]) -> str:
    head = "<tr><th>set</th><th>metric</th><th>before</th><th>after</th><th>gain</th><th>95 %</th></tr>"
    rows = [head]
    for d in differences:
        kind = {"B": ' class="good"', "A": ' class="bad"'}.get(d.better, "")
        gain = shown(d.second - d.first, d.statistic, "+")
        cells = [escape(d.set), escape(d.metric), shown(d.first, d.statistic), shown(d.second, d.statistic)]
        row = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f"<tr>{row}<td{kind}>{gain}</td><td>{between(d.interval, d.statistic)}</td></tr>")
    return f"<table>{''.join(rows)}</table>"


def _curves(out: Path) -> str:
    """The losses as a picture; a line in its place without matplotlib."""
    picture = out / "curves.png"
    try:
        draw({out.name: read_curves(out)}, picture)
    except UserError as error:
        return f"<p>No curves: {escape(str(error))}</p>"
    return f'<h2>Curves</h2><img class="curves" alt="losses" src="{_data("image/png", picture.read_bytes())}">'


def _examples(
    pair: str, samples: Sequence[Sample], before: Sequence[int], after: Sequence[int], labelled: bool
) -> list[str]:
    """Cards of the items whose rank moved most, for better and for worse."""
    wanted = "its class" if labelled else "what belongs to it"
    order = sorted(range(len(samples)), key=lambda i: after[i] / before[i])
    better = [i for i in order if after[i] < before[i]][:EXAMPLES]
    worse = [i for i in reversed(order) if after[i] > before[i]][:EXAMPLES]
    found = []
    for title, chosen in (("Better", better), ("Worse", worse)):
        found.append(f"<h2>{title}: {escape(pair)}</h2>")
        if not chosen:
            found.append(f"<p>No item is {title.lower()} than before.</p>")
            continue
        found.append(f"<p>The place at which an item finds {wanted}, before and after.</p><div class='cards'>")
        modality = pair.split("+")[0]
        for i in chosen:
            words = samples[i].label if labelled else (samples[i].captions or [samples[i].key])[0]
            media = _media(modality, samples[i])
            found.append(f"<figure>{media}<figcaption>{before[i]} → {after[i]}: {escape(words)}</figcaption></figure>")
        found.append("</div>")
    return found


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
