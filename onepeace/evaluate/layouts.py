"""Downloads of data sets as the items of an evaluation: `layout: NAME` and `split: SPLIT` in place of shards.

NAME is a layout of `onepeace shards` (SPLIT is val, train or all of it), or "karpathy_coco" and the like (SPLIT is one
of Karpathy's: test, val, train).
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from onepeace.data.sample import Sample
from onepeace.data.shards import NAMED
from onepeace.datasets import LAYOUTS
from onepeace.datasets.karpathy import NAMES, karpathy
from onepeace.datasets.layout import Record, Skipped
from onepeace.errors import UserError

log = logging.getLogger(__name__)

SPLITS = ("val", "train", "all")
"""Splits of a layout of `onepeace shards`."""


def read(root: Path, layout: str, split: str, needed: Sequence[str]) -> list[Sample]:
    """The samples of a split below a folder that have all of these modalities; the others are named in a warning.

    Raises:
        UserError: there is no such layout or split, or nothing of it can be used.
    """
    samples: list[Sample] = []
    left_out: list[str] = []
    for record in _records(root, layout, split):
        if isinstance(record, Skipped):
            left_out.append(f"{record.where}: {record.reason}")
        elif lacking := [modality for modality in needed if not record.inputs.get(modality)]:
            left_out.append(f"{record.name}: has no {' and no '.join(lacking)}")
        else:
            samples.append(record)
    if not samples:
        raise UserError(
            f"{root}: nothing of {layout} {split} can be used; {left_out[0] if left_out else 'it is empty'}"
        )
    if left_out:
        rest = f" and {len(left_out) - NAMED} more" if len(left_out) > NAMED else ""
        log.warning("%s %s: %d left out: %s%s", layout, split, len(left_out), "; ".join(left_out[:NAMED]), rest)
    return samples


def class_names(root: Path, layout: str) -> list[str] | None:
    """The names of all classes of a set, in the order of their numbers; None where it has none."""
    if layout not in LAYOUTS:
        return None
    # The first split is that of validation data, which has them.
    classes = next(LAYOUTS[layout].splits(root, lambda name: ())).classes
    return [entry["name"] if isinstance(entry, dict) else entry for entry in classes] if classes else None


def _records(root: Path, layout: str, split: str) -> Iterable[Record | Skipped]:
    if layout in READERS:
        return READERS[layout](root, split)
    if layout not in LAYOUTS:
        raise UserError(f"no layout {layout!r}; there are {', '.join([*LAYOUTS, *READERS])}")
    if split not in SPLITS:
        raise UserError(f"layout {layout} has no split {split!r}; there are {', '.join(SPLITS)}")
    wanted = ("val", "train") if split == "all" else (split,)
    return (record for part in wanted for record in LAYOUTS[layout].read(root, part))


READERS: dict[str, Callable[[Path, str], Iterator[Record | Skipped]]] = {
    f"karpathy_{name}": partial(karpathy, name) for name in NAMES
}
"""Layouts that only an evaluation reads: READERS["mine"](root, split)."""
