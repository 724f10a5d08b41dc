"""Downloads of data sets as the items of an evaluation: `layout: NAME` and `split: SPLIT` in place of shards.

NAME is a layout of `onepeace shards` (SPLIT is val, train or all of it), "karpathy_coco" and the like (SPLIT is one of
Karpathy's: test, val, train), or "clip_benchmark", a folder of webdataset shards as CLIP_benchmark's
`clip_benchmark_export_wds` writes it:

    test/nshards.txt, test/0.tar, ...   KEY.webp (or any other picture or sound) with KEY.cls, a class number, or
                                        KEY.txt, a caption a line, or KEY.npy, one 0 or 1 for each class
    classnames.txt                      in the order of the class numbers
    zeroshot_classification_templates.txt   with {c} for the class name
"""

import io
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from onepeace.data.sample import Sample
from onepeace.data.shards import NAMED, raw_samples
from onepeace.datasets import LAYOUTS
from onepeace.datasets.karpathy import NAMES, karpathy
from onepeace.datasets.layout import Record, Skipped, skipped
from onepeace.errors import UserError
from onepeace.processors import guessed

log = logging.getLogger(__name__)

CLIP_BENCHMARK = "clip_benchmark"
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
    if layout == CLIP_BENCHMARK:
        return _lines(root / "classnames.txt") or None
    if layout not in LAYOUTS:
        return None
    # The first split is that of validation data, which has them.
    classes = next(LAYOUTS[layout].splits(root, lambda name: ())).classes
    return [entry["name"] if isinstance(entry, dict) else entry for entry in classes] if classes else None


def templates(root: Path, layout: str) -> tuple[str, ...]:
    """The sentences for class names that a folder in CLIP_benchmark's layout brings, with {} for the name; or none."""
    lines = _lines(root / "zeroshot_classification_templates.txt") if layout == CLIP_BENCHMARK else []
    return tuple(line.replace("{c}", "{}") for line in lines if line)


def _records(root: Path, layout: str, split: str) -> Iterable[Record | Skipped]:
    if layout in READERS:
        return READERS[layout](root, split)
    if layout not in LAYOUTS:
        raise UserError(f"no layout {layout!r}; there are {', '.join([*LAYOUTS, *READERS])}")
    if split not in SPLITS:
        raise UserError(f"layout {layout} has no split {split!r}; there are {', '.join(SPLITS)}")
    wanted = ("val", "train") if split == "all" else (split,)
    return (record for part in wanted for record in LAYOUTS[layout].read(root, part))


def clip_benchmark(root: Path, split: str) -> Iterator[Record | Skipped]:
    """The samples of one split of a folder in CLIP_benchmark's layout."""
    number = _lines(root / split / "nshards.txt")
    if not number or not number[0].isdecimal():
        raise UserError(f"{root / split / 'nshards.txt'}: not there, or not a number of shards")
    names = _lines(root / "classnames.txt")
    endings = {suffix[1:]: key for key, cls in guessed().items() if key != "text" for suffix in cls.suffixes}
    broken: list[str] = []
    for i in range(int(number[0])):
        shard = root / split / f"{i}.tar"
        for raw in raw_samples(str(shard.absolute()), broken):
            inputs: dict[str, Any] = {key: raw[ending] for ending, key in endings.items() if ending in raw}
            where = f"{shard}: {raw['__key__']}"
            try:
                inputs["text"] = [line.strip() for line in raw.get("txt", b"").decode().splitlines() if line.strip()]
                targets = _classes(raw, names)
            except ValueError as error:
                yield skipped(where, error)
                continue
            yield Record(raw["__key__"], shard.name, inputs, targets, {}, where)
        yield from (Skipped(str(shard), reason) for reason in broken)
        broken.clear()


def _classes(raw: Mapping[str, bytes], names: Sequence[str]) -> dict[str, Any]:
    """The targets of a sample; ValueError for a class without a name."""
    if "cls" in raw:
        number = int(raw["cls"])
        if not 0 <= number < len(names):
            raise ValueError(f"class {number} is not one of the {len(names)} in classnames.txt")
        return {"label": names[number]}
    if "npy" in raw:
        flags = np.load(io.BytesIO(raw["npy"]), allow_pickle=False)
        if flags.shape != (len(names),):
            raise ValueError(f"its .npy has shape {flags.shape}, classnames.txt has {len(names)} names")
        return {"labels": [name for name, flag in zip(names, flags, strict=True) if flag]}
    return {}


def _lines(path: Path) -> list[str]:
    """The lines of a text file; none of one that is not there."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


READERS: dict[str, Callable[[Path, str], Iterator[Record | Skipped]]] = {
    **{f"karpathy_{name}": partial(karpathy, name) for name in NAMES},
    CLIP_BENCHMARK: clip_benchmark,
}
"""Layouts that only an evaluation reads: READERS["mine"](root, split)."""
