"""Captions for the files of an index, written by a generative model: `--where "caption ~ 'dog'"` then finds them."""

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from onepeace.errors import UserError
from onepeace.index.content import each
from onepeace.index.index import Index
from onepeace.index.lock import writing
from onepeace.index.milvus import mirrored
from onepeace.index.store import Item, Store

if TYPE_CHECKING:
    from onepeace.generative.generator import Generator
    from onepeace.generative.pipeline import Generated

BY = "captioned_by"
"""Field of an item's metadata: the model that wrote its caption. Captions without it were given, and stay."""
AT_ONCE = 64
"""Captions that are written together; a stopped run has lost no more."""


@dataclass
class Captioned:
    """What became of the files of an index that the model reads."""

    written: int = 0
    known: int = 0
    """That have a caption already."""
    left_out: int = 0
    """That are not there any more, have changed since they were embedded, or are at an address of the web."""
    problems: tuple[tuple[str, str], ...] = ()
    """Path and reason of those that failed."""


def write_captions(
    folder: str | os.PathLike[str], generator: "Generator", model: str, *, again: bool = False, batch_size: int = 8
) -> Captioned:
    """Captions every picture of an index that has none, and every sound if the model hears.

    Args:
        model: name of the generator's model, which is kept beside its captions.
        again: write those anew that a model wrote.

    Raises:
        UserError: no index there, another process is writing, the model writes no captions.
    """
    task = generator.task("caption")
    if task.answer != "text":
        raise UserError(f"the task caption of {model} gives no text but {task.answer}")
    with Index.open(folder):  # says so if there is none
        pass
    with writing(folder) as target, closing(Store(target, write=True)) as store, mirrored(store):
        report, places = Captioned(), []
        kinds = generator.reader.processors(task)
        files = [item for item in store.items("problem IS NULL") if item.modality in kinds]
        open_ones = [item for item in files if not item.caption or (again and BY in item.metadata)]
        report.known = len(files) - len(open_ones)

        def items() -> Iterator[dict[str, Any]]:
            for place, value in each(open_ones, lambda value: value, progress=False):
                places.append(place)
                yield {open_ones[places[-1]].modality: value}

        waiting: list[Item] = []
        for one in generator.stream(task, items(), batch_size=batch_size):
            item = open_ones[places[one.index]]
            if not one.answers:
                report.problems += ((item.path, str(one.reason)),)
                continue
            waiting.append(_captioned(item, one, model))
            report.written += 1
            if len(waiting) == AT_ONCE:
                store.change(waiting)
                waiting = []
        store.change(waiting)
        store.backup()
        report.left_out = len(open_ones) - len(places)
    return report


def _captioned(item: Item, one: "Generated", model: str) -> Item:
    text = getattr(one.answer, "text", "")
    return replace(item, caption=text, metadata={**item.metadata, BY: model})
