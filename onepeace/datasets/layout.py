"""Layout: reads a public dataset in its downloaded form as samples.

A layout is a Python file that names it `layout`: ``layout = Coco()``. Those of our recipes are in recipes/layouts.
"""

import dataclasses
import inspect
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

from onepeace.config import apply_override, build, to_plain
from onepeace.data.sample import Sample
from onepeace.errors import UsageError, UserError, one_line, reason_at
from onepeace.extensions import run_file

T = TypeVar("T")


class Skipped(NamedTuple):
    """A row or file that cannot be used."""

    where: str
    reason: str


def skipped(where: Path | str, reason: str | Exception) -> Skipped:
    """Create a `Skipped` with its reason on one line."""
    if isinstance(reason, OSError):
        reason = reason.strerror or str(reason)
    text = reason_at(where, reason) if isinstance(reason, Exception) else one_line(reason)
    return Skipped(str(where), text)


@dataclass(frozen=True)
class Record(Sample):
    """A sample before it is written into a shard: pictures and sounds are paths, or bytes if they are not in files.

    An empty key is replaced by the number of the sample.
    """

    about: dict[str, Any] = field(default_factory=dict)
    """Further fields of KEY.json: the license, and information from the dataset."""
    where: str = ""
    """Name in messages; if empty, the path of its file."""

    @property
    def name(self) -> str:
        """Name in messages."""
        if self.where:
            return self.where
        for value in self.inputs.values():
            file = value[0] if isinstance(value, list) and value else value
            if isinstance(file, Path):
                return str(file)
        return self.key


class Encoded(NamedTuple):
    """The files of a sample, as written into a shard."""

    files: dict[str, bytes]
    """Content by file ending, without the dot."""
    original: bytes | None = None
    """Source of the files: of samples with equal originals, only the first is written. None = always written."""


class Split(NamedTuple):
    """One set of shards, and the samples that go into it."""

    shards: str
    """Path below the root: "val/coco/coco" for val/coco/coco-00000.tar. The first part is train or val."""
    records: Iterable[Record | Skipped]
    """Can be iterated once."""
    encode: Callable[[Record], Encoded]
    """Called from several threads; an OSError or UserError says why the record cannot be used."""
    classes: Sequence[Any] | None = None
    """Written to classes.json in the folder of the shards."""


HeldOut = Callable[[str], Iterable[Record]]
"""Returns the validation samples that were written for another dataset, from the folder val/NAME."""


def option(default: Any, text: str) -> Any:
    """A field of a layout that `onepeace shards --layout FILE.py ... field=value` sets."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Layout:
    """A public dataset. A subclass is a frozen dataclass with `option`s as fields; its docstring is the help text."""

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        """The splits of the dataset in `folder`, those of validation data first.

        Read all records of a split before the next one: of equal pictures only the first is kept.

        Raises:
            UserError: `folder` does not contain the dataset, or a table in it is invalid (names file and line).
        """
        raise NotImplementedError

    def with_options(self, overrides: Sequence[str], where: str) -> "Layout":
        """A copy with options set, each as "size=160"; UserError names `where` and the invalid one."""
        content = to_plain(self)
        for override in overrides:
            apply_override(content, override)
        return build(type(self), content, where)

    def help(self) -> str:
        """Text for --help: the source, and the options with their defaults."""
        lines = [inspect.cleandoc(self.__doc__ or ""), ""]
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            text = f"[{','.join(value)}]" if isinstance(value, tuple) else str(value)
            setting = f"{option.name}={text}"
            lines.append(f"  {setting:<20} {option.metadata['help']}")
        return "\n".join(lines)


def load_layout(file: str) -> Layout:
    """The `layout` that a Python file defines.

    Raises:
        UsageError: there is no such file, or it defines none; UserError: the file fails.
    """
    layout = getattr(run_file(file), "layout", None)
    if not isinstance(layout, Layout):
        raise UsageError("defines no layout; its last line is like: layout = MyDataset()", where=file)
    return layout


class Table(NamedTuple):
    """One official split, as its table lists it."""

    path: Path
    records: Sequence[Record]
    """All samples in the order of the table; a missing file is None."""
    classes: Sequence[Any] | None = None


@dataclass(frozen=True)
class OfficialSplits(Layout):
    """A layout whose training and validation data are chosen from the official splits of the dataset."""

    prefix: ClassVar[str] = ""
    """Name of the shards and of their folders."""
    shared_folder: ClassVar[str] = ""
    """Folder below train/ that is shared with other datasets; empty = a separate folder."""
    hint: ClassVar[str] = ""
    """Remedy for missing files."""
    train: tuple[str, ...] = option((), "official splits that are training data")
    val: tuple[str, ...] = option((), "official splits that are validation data")

    def __post_init__(self) -> None:
        in_both = sorted({*self.train} & {*self.val})
        if in_both:
            raise UserError(f"{in_both[0]} cannot be both training and validation data")

    @property
    def chosen_splits(self) -> tuple[str, ...]:
        """The official splits in use, those of validation data first."""
        return (*self.val, *self.train)

    def tables(self, folder: Path, held_out: HeldOut) -> Mapping[str, Table]:
        """The official splits in use by name."""
        raise NotImplementedError

    def shards(self, split: str) -> str:
        """Path of the shards of an official split below the root."""
        if split in self.val:
            folder = f"val/{self.prefix}"
        else:
            folder = f"train/{self.shared_folder or self.prefix}"
        return f"{folder}/{self.prefix}_{split}"

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        tables = self.tables(folder, held_out)  # all of them are read before the first shard is written
        for name in self.chosen_splits:
            if name not in tables:
                raise UserError(f"has no split {name!r}; it has {', '.join(sorted(tables))}", where=folder)
            table = tables[name]
            # A folder of several datasets has no classes.json.
            is_shared = name in self.train and bool(self.shared_folder)
            yield Split(
                shards=self.shards(name),
                records=present(table.records, table.path, self.hint),
                encode=self.encode,
                classes=None if is_shared else table.classes,
            )

    def encode(self, record: Record) -> Encoded:
        """The files of a record, as written into a shard."""
        raise NotImplementedError


def shuffled(items: Iterable[T]) -> list[T]:
    """The items in a fixed random order."""
    result = list(items)
    random.Random(0).shuffle(result)  # noqa: S311
    return result


def present(records: Sequence[Record], table: Path, hint: str) -> Iterator[Record | Skipped]:
    """Yield a `Skipped` with the number of missing files in `table`, if any, then the complete records, shuffled."""
    modalities = dict.fromkeys(chain.from_iterable(record.inputs for record in records))
    modalities.pop("text", None)
    for modality in modalities:
        complete = []
        missing = []
        for record in records:
            if record.inputs[modality] is None:
                missing.append(record.key)
            else:
                complete.append(record)
        if len(missing) == len(records):
            yield skipped(table, f"none of its {len(records)} {modality} files is there; {hint}")
        elif missing:
            examples = [*missing[:3], "..."] if len(missing) > 3 else missing
            count = f"{len(missing)} of {len(records)} {modality} files are missing"
            yield skipped(table, f"{count} ({', '.join(examples)})")
        records = complete
    yield from shuffled(records)
