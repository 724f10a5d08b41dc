"""Evaluation recipes and their runner, for `onepeace evaluate` and for the scores of a training run.

A recipe has named sets, each with a protocol and its options, and the folder that contains their shards
(recipes/evaluate/tiny.yaml).
"""

import logging
import os
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from onepeace.config import Options, apply_override, build, read_yaml, to_plain
from onepeace.config.reader import nearest
from onepeace.errors import UserError
from onepeace.evaluate.protocols import PROTOCOLS, EvaluationProtocol
from onepeace.evaluate.protocols.protocol import hashing
from onepeace.evaluate.ranking import figures_of
from onepeace.evaluate.report import ReportRow

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataRoot:
    """Folder of the sets."""

    root: str = "${ONEPEACE_DATA}"
    """Folder that the paths of the sets are relative to; environment variables are expanded."""

    def folder(self) -> Path:
        """The folder with its variables expanded; UserError if one of them is not set or the folder is missing."""
        folder = os.path.expandvars(os.path.expanduser(self.root))
        if "$" in folder:
            raise UserError(
                f"data.root is {self.root}, and that variable is not set; "
                "set it to the folder of shards, or give --data FOLDER (train: data.root=FOLDER)"
            )
        if not Path(folder).is_dir():
            raise UserError(f"data.root {folder} is not a folder; data/README.md says how its shards are made")
        return Path(folder)


@dataclass(frozen=True)
class _Content:
    """An evaluation recipe as written in its file."""

    sets: dict[str, dict[str, Any]]
    data: DataRoot = field(default_factory=DataRoot)


class EvaluationRecipe(NamedTuple):
    """The sets to measure a model on."""

    sets: dict[str, EvaluationProtocol]
    data: DataRoot


def read_recipe(path: Path | str, overrides: Sequence[str] = ()) -> EvaluationRecipe:
    """Read an evaluation recipe; each override is "a.b=value" with the value in YAML, later ones win, and
    "sets.NAME=null" leaves a set out."""
    where = str(path)
    content = read_yaml(path)
    for override in overrides:
        apply_override(content, override)
    sets = content.get("sets")
    if isinstance(sets, dict):
        sets_not_null = {name: options for name, options in sets.items() if options is not None}
        content = {**content, "sets": sets_not_null}
    written = build(_Content, content, where)
    protocols = {}
    for name, options in written.sets.items():
        protocols[name] = _protocol(options, f"{where}: sets.{name}")
    return EvaluationRecipe(protocols, written.data)


def _protocol(options: Options, where: str) -> EvaluationProtocol:
    protocol_options = dict(options)
    key = protocol_options.pop("protocol", None)
    if not isinstance(key, str) or key not in PROTOCOLS:
        raise UserError(f"protocol is {key!r}; known: {', '.join(PROTOCOLS)}", where=where)
    known = ["protocol", *(field.name for field in fields(PROTOCOLS[key]))]
    for name in protocol_options:
        if name not in known:
            raise UserError(f"{name} is not a field; {nearest(name, known)}", where=where)
    protocol: EvaluationProtocol = build(PROTOCOLS[key], protocol_options, where)
    if not all(items.shards for items in protocol.sides):
        raise UserError("give shards, a pattern of files below data.root", where=where)
    return protocol


def run(
    embedder: Any,
    sets: Mapping[str, EvaluationProtocol],
    root: Path,
    failed: Callable[[UserError], object] | None = None,
) -> Iterator[ReportRow]:
    """Measure an embedder on sets, one after another; yields the rows of each set once it is measured.

    Args:
        embedder: see `EvaluationProtocol.run`. If it has ``modalities``, sets with other modalities are left out with
            a warning.
        sets: by name, as in `EvaluationRecipe`.
        root: folder that the patterns of their shards are relative to.
        failed: called with the error of a set that cannot be measured, before the next set; by default it is raised.

    Raises:
        UserError: an error of a protocol, with the name of the set.
    """
    for name, protocol in sets.items():
        lacking = lacking_modalities(protocol, getattr(embedder, "modalities", None))
        if lacking:
            log.warning("%s: left out, the model has no %s", name, " and no ".join(lacking))
            continue
        try:
            rows = _measure(name, protocol, embedder, root)
        except UserError as error:
            error_of_set = UserError(f"set {name}: {error}")
            if failed is None:
                raise error_of_set from error
            failed(error_of_set)
        else:
            yield from rows


def _measure(name: str, protocol: EvaluationProtocol, embedder: Any, root: Path) -> list[ReportRow]:
    """The rows of one set."""
    start = time.perf_counter()
    with hashing() as digest:
        figures = figures_of(protocol.run(embedder, root))
    seconds = time.perf_counter() - start
    circumstances = {
        **_options(protocol),
        "prompts": list(protocol.prompts),
        "data_hash": digest.hexdigest(),
    }
    return [ReportRow.of(name, figure, seconds, circumstances) for figure in figures]


def _options(protocol: EvaluationProtocol) -> Options:
    """The key of a protocol, and its options as in a recipe."""
    class_name = type(protocol).__name__
    keys_by_class = {protocol_class: key for key, protocol_class in PROTOCOLS.items()}
    return {
        "protocol": keys_by_class.get(type(protocol), class_name),
        "options": to_plain(protocol),
    }


def lacking_modalities(protocol: EvaluationProtocol, modalities: Container[str] | None) -> list[str]:
    """The modalities of a set that a model lacks; empty if the modalities of the model are None (unknown)."""
    if modalities is None:
        return []
    needed = dict.fromkeys(side.modality for side in protocol.sides)
    return [modality for modality in needed if modality not in modalities]
