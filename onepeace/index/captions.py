"""Captions for the files of an index, written by a generative model: ``--where "'dog' in caption"`` then finds them."""

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onepeace.errors import UserError
from onepeace.index.builder import BY
from onepeace.index.content import each
from onepeace.index.nearest import keep
from onepeace.index.store import Item, Store
from onepeace.index.write import writing

if TYPE_CHECKING:
    from onepeace.generative.generator import Generator

AT_ONCE = 64
"""Captions that are written together; a stopped run has lost no more."""


@dataclass
class Captioned:
    """Numbers of the files of an index that the model reads."""

    written: int = 0
    known: int = 0
    """Files that have a caption already."""
    left_out: int = 0
    """Files that are gone, have changed since they were embedded, or are at an address of the web."""
    problems: tuple[tuple[str, str], ...] = ()
    """Path and reason of those that failed."""


def write_captions(
    folder: str | os.PathLike[str],
    generator: "Generator",
    model: str,
    *,
    again: bool = False,
    batch_size: int = 8,
    progress: bool | None = None,
) -> Captioned:
    """Write a caption of every picture of an index that has none, and of every sound if the model hears.

    Args:
        model: name of the generator's model, which is kept beside its captions.
        again: write those anew that a model wrote.
        progress: False = silent; None = a bar on a terminal, and now and then a line in a log.

    Raises:
        UserError: no index there, another process is writing, the model writes no captions.
    """
    task = generator.task("caption")
    if task.answer != "text":
        raise UserError(f"the task caption of {model} gives no text but {task.answer}")
    with closing(Store(Path(folder))):  # says so if there is none
        pass
    with writing(folder) as target, closing(Store(target, write=True)) as store:
        report, places = Captioned(), []
        kinds = generator.reader.processors(task)
        files = [item for item in store.items("problem IS NULL") if item.modality in kinds]
        open_ones = [item for item in files if not item.caption or (again and BY in item.metadata)]
        report.known = len(files) - len(open_ones)

        def items() -> Iterator[dict[str, Any]]:
            for place, value in each(open_ones, store.roots(), lambda value: value, progress):
                places.append(place)
                yield {open_ones[place].modality: value}

        written = generator.stream(task, items(), batch_size=batch_size)
        while some := list(islice(written, AT_ONCE)):
            captioned: list[Item] = []
            for one in some:
                item = open_ones[places[one.index]]
                if one.answers:
                    metadata = {**item.metadata, BY: model}
                    captioned.append(replace(item, caption=getattr(one.answer, "text", ""), metadata=metadata))
                else:
                    report.problems += ((item.path, str(one.reason)),)
            with store.transaction():
                store.change(captioned)
            report.written += len(captioned)
        keep(store)
        report.left_out = len(open_ones) - len(places)
    return report
