"""Vectors out of an index for other programs, and vectors of other models into one of their own."""

import math
import os
import re
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from onepeace.errors import UsageError, UserError
from onepeace.files.embeddings import WRITERS, Embeddings, read_embeddings, write_file, write_folder
from onepeace.files.source import scheme, suffix
from onepeace.index.calibration import FILE as CALIBRATION
from onepeace.index.calibration import Calibration
from onepeace.index.fitting import fit
from onepeace.index.identity import IMPORTED
from onepeace.index.index import Index
from onepeace.index.lock import writing
from onepeace.index.sampling import of_embeddings
from onepeace.index.sources import modalities_by_suffix, without_surrogates
from onepeace.index.store import DATABASE, MODALITIES, Item, Span, Store

BATCH = 4096
"""Files that are imported in one transaction."""
KINDS = (*MODALITIES, "video")
HASH = re.compile("[0-9a-f]{32}")
ZERO = 1e-6
"""Length of a vector below which it has no direction."""


def export(index: Index, target: Path) -> int:
    """Write all vectors of an index with what is known of their files; gives how many. See `onepeace.files.embeddings`.

    Args:
        target: .npz, .safetensors or .parquet; without an ending a folder, whose manifest also lists the files that
            could not be embedded.

    Raises:
        UsageError: an unknown ending, or a folder that holds something else; UserError: the disk is full.
    """
    ending = target.suffix.lower()
    is_folder = target.is_dir() or not ending
    if not is_folder and ending not in WRITERS:
        raise UsageError(f"{target}: unknown ending {target.suffix!r}; known: {', '.join(WRITERS)}, none for a folder")
    rows = index.rows
    items = {item.id: item for item in index.items()}
    of_rows = [items[file] for file in rows.file.tolist()]
    spans = zip(rows.start.tolist(), rows.end.tolist(), strict=True)
    embeddings = Embeddings(
        np.asarray(rows.vectors[rows.row]),
        [item.path for item in of_rows],
        [index.store.kinds[code] for code in rows.modality.tolist()],
        [_about(item, *span) for item, span in zip(of_rows, spans, strict=True)],
    )
    if is_folder:
        broken = index.store.items("problem IS NOT NULL")
        others = [
            {"path": item.path, "modality": item.modality, **_about(item), "problem": item.problem} for item in broken
        ]
        write_folder(target, embeddings, others)
    else:
        try:
            write_file(target, embeddings)
        except OSError as error:
            raise UserError(f"{target}: cannot be written ({error.strerror or error})") from error
    return len(of_rows)


def _about(item: Item, start: float = np.nan, end: float = np.nan) -> dict[str, Any]:
    """The fields of `onepeace.files.embeddings.COLUMNS`."""
    about = {name: getattr(item, name) for name in ("size", "date", "width", "height", "duration", "caption", "note")}
    about |= {"kind": item.modality, "mtime": item.mtime_ns / 1e9, "metadata": item.metadata or None}
    about["hash"] = item.hash.hex() if item.hash else None
    about |= {"start": start, "end": end} if start == start else {"start": None, "end": None}
    return about


def import_vectors(folder: str | os.PathLike[str], source: Path, name: str, root: Path = Path()) -> tuple[int, int]:
    """Put vectors of another model into an index of their own, which is made if it is not there.

    Args:
        source: .npz, .safetensors, .parquet or a folder, as `export` and `onepeace embed` write them. Several rows of
            one path are several vectors of that file.
        name: of the model, for messages; an index holds vectors of one.
        root: folder that relative paths are relative to.

    Returns:
        Numbers of files and of vectors.

    Raises:
        UserError: not such a file, vectors of another width, with NaN or without length, or an index of something else.
    """
    embeddings = read_embeddings(source)
    if not len(embeddings.vectors):
        raise UserError(f"{source}: no vectors in it")
    modalities = _modalities(source, embeddings)
    _check(source, embeddings)
    with writing(folder) as target, closing(_open(target, name, embeddings, modalities)) as store:
        files = _files(embeddings, modalities, root)
        for first in range(0, len(files), BATCH):
            batch = files[first : first + BATCH]
            vectors = np.array(embeddings.vectors[[row for _, rows in batch for row in rows]], np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            store.add([(item, [_span(embeddings, modalities, row) for row in rows]) for item, rows in batch], vectors)
        store.backup()
        with Index.open(target) as index:
            index.candidates.keep()
        return len(files), len(embeddings.vectors)


def calibrate(folder: str | os.PathLike[str], source: Path, prior: float) -> Calibration:
    """Make the calibration of an index of imported vectors, from vectors of the same model; see `of_embeddings`.

    Args:
        source: as for `import_vectors`: pictures and sounds, and texts that go with them.
        prior: see `onepeace.index.fitting.fit`.

    Raises:
        UserError: not such a file, or too few vectors; the index is of a model that onepeace runs.
    """
    embeddings = read_embeddings(source)
    _check(source, embeddings)
    embeddings = replace(embeddings, modalities=_modalities(source, embeddings))
    with writing(folder) as target:
        with Index.open(target) as index:
            name, width, given = index.model, index.embed_dim, embeddings.vectors.shape[1]
            if not index.is_imported:
                raise UsageError(f"{folder}: is of {name}; calibrate that: onepeace calibrate {name} SOURCE")
            if width != given:
                raise UserError(f"{source}: vectors of {given} numbers, those of {folder} have {width}")
            model = index.store.meta["model_hash"]
        about = {"sources": [source.name], "prior": prior}
        calibration = fit(of_embeddings(embeddings), prior=prior, model=model, about=about).calibration
        calibration.save(target / CALIBRATION)
        with Index.open(target) as index:
            index.candidates.keep()
    return calibration


def _open(folder: Path, name: str, embeddings: Embeddings, modalities: list[str]) -> Store:
    width = embeddings.vectors.shape[1]
    if not (folder / DATABASE).exists():
        about = {"model": name, "model_hash": IMPORTED, "preprocessing": IMPORTED, "window": "0", "hop": "0"}
        return Store.create(folder, width, {**about, "modalities": " ".join(sorted(set(modalities)))})
    store = Store(folder, write=True)
    meta = store.meta
    if (meta["model_hash"], meta["model"]) != (IMPORTED, name):
        kind = "imported vectors" if meta["model_hash"] == IMPORTED else "vectors made here"
        store.close()
        raise UserError(f"{folder}: an index of {kind} of {meta['model']}; those of {name} need an index of their own")
    if store.embed_dim != width:
        store.close()
        raise UserError(
            f"{folder}: vectors of {store.embed_dim} numbers, not {width}; those need an index of their own"
        )
    return store


def _modalities(source: Path, embeddings: Embeddings) -> list[str]:
    """Of each row, by its file's ending where it is not said."""
    by_suffix = modalities_by_suffix()
    found = []
    for path, said in zip(embeddings.paths, embeddings.modalities, strict=True):
        modality = said or by_suffix.get(suffix(path), "")
        if modality not in MODALITIES:
            raise UserError(f"{source}: {path} is {modality or 'of no known kind'}; known: {', '.join(MODALITIES)}")
        found.append(modality)
    return found


def _files(embeddings: Embeddings, modalities: list[str], root: Path) -> list[tuple[Item, list[int]]]:
    """The files in the order of their first rows, each with its rows."""
    rows: dict[str, list[int]] = {}
    for row, given in enumerate(embeddings.paths):
        rows.setdefault(given if scheme(given) else os.path.abspath(root / given), []).append(row)
    about = embeddings.about or [{}] * len(embeddings.paths)
    return [(_item(path, modalities[own[0]], about[own[0]]), own) for path, own in rows.items()]


def _item(path: str, modality: str, about: Mapping[str, Any]) -> Item:
    """What is said of a file, as far as it is of the right kind: any program may have written it."""
    try:
        status = os.stat(path)
        size, mtime_ns = status.st_size, status.st_mtime_ns
    except (OSError, ValueError):  # an address, a sample of a shard, or a file that lies elsewhere
        size, mtime_ns = int(_number(about, "size") or 0), round(1e9 * (_number(about, "mtime") or 0))
    words = {name: about[name] for name in ("kind", "hash", "caption", "note") if isinstance(about.get(name), str)}
    width, height = _number(about, "width"), _number(about, "height")
    return Item(
        path,
        words["kind"] if words.get("kind") in KINDS else modality,
        size,
        mtime_ns,
        hash=bytes.fromhex(words["hash"]) if HASH.fullmatch(words.get("hash", "")) else None,
        date=_number(about, "date") or mtime_ns / 1e9 or None,
        width=None if width is None else int(width),
        height=None if height is None else int(height),
        duration=_number(about, "duration"),
        caption=without_surrogates(words.get("caption", "")) or None,
        metadata=about["metadata"] if isinstance(about.get("metadata"), dict) else {},
        note=words.get("note"),
    )


def _number(about: Mapping[str, Any], name: str) -> float | None:
    value = about.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _span(embeddings: Embeddings, modalities: list[str], row: int) -> Span:
    about = embeddings.about[row] if embeddings.about else {}
    return Span(modalities[row], _number(about, "start"), _number(about, "end"))


def _check(source: Path, embeddings: Embeddings) -> None:
    for first in range(0, len(embeddings.vectors), BATCH):
        lengths = np.linalg.norm(np.array(embeddings.vectors[first : first + BATCH], np.float32), axis=1)
        wrong = np.flatnonzero(~(np.isfinite(lengths) & (lengths > ZERO)))
        if len(wrong):
            reason = "all zeros" if np.isfinite(lengths[wrong[0]]) else "NaN or infinite"
            raise UserError(f"{source}: the vector of {embeddings.paths[first + wrong[0]]} is {reason}")
