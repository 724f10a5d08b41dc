"""Vectors with the paths of what they stand for, for other programs: one file, or a folder; written, and read again.

    .npz          arrays vectors (n, E), paths (n,), modalities (n,), manifest (bytes of JSON lines)
    .safetensors  tensor vectors (n, E); in the metadata paths and modalities as JSON lists, manifest as JSON lines
    .parquet      columns path, modality, vector, and one for each further field
    a folder      vectors.npy (n, E), and manifest.jsonl, whose line i is about row i; lines after the last row are
                  about files without a vector

The manifest holds all fields of each row; npz and safetensors have one only if there are more than path and modality.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from onepeace.errors import UserError, need, one_line
from onepeace.files.atomic import write_atomic, write_text_atomic

COLUMNS = {
    "kind": "string", "start": "float64", "end": "float64", "size": "int64", "mtime": "float64", "hash": "string",
    "date": "float64", "width": "int32", "height": "int32", "duration": "float64", "caption": "string",
    "metadata": "string", "note": "string",
}  # fmt: skip
"""Further fields, with their types in Parquet: the kind of the file that the vector is of; the seconds of it; its size
in bytes; seconds since 1970; blake2b of the content; metadata as JSON."""
VECTORS, MANIFEST = "vectors.npy", "manifest.jsonl"
CHUNK = 1 << 14
"""Rows that are copied at once."""


@dataclass(frozen=True)
class Embeddings:
    """n vectors and what they stand for."""

    vectors: np.ndarray
    """(n, E) float32."""
    paths: Sequence[str]
    modalities: Sequence[str]
    about: Sequence[Mapping[str, Any]] = ()
    """Fields of COLUMNS of each vector; () = none of any."""

    def lines(self) -> list[str]:
        """The manifest. ASCII: bytes of a path that are not UTF-8 are escaped halves of surrogate pairs."""
        about = self.about or [{}] * len(self.paths)
        rows = zip(self.paths, self.modalities, about, strict=True)
        return [json.dumps({"path": path, "modality": modality, **more}) for path, modality, more in rows]


def write_folder(folder: Path, embeddings: Embeddings, others: Sequence[Mapping[str, Any]] = ()) -> None:
    """A folder of vectors and a manifest; ``others`` are lines about files without a vector.

    Raises:
        UserError: the disk is full or not writable.
    """
    vectors = embeddings.vectors
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with write_atomic(folder / VECTORS) as temporary, open(temporary, "wb") as file:
            head = {"descr": "<f4", "fortran_order": False, "shape": vectors.shape}
            np.lib.format.write_array_header_1_0(file, head)
            for first in range(0, len(vectors), CHUNK):
                file.write(np.ascontiguousarray(vectors[first : first + CHUNK], "<f4").tobytes())
        lines = [*embeddings.lines(), *map(json.dumps, others)]
        write_text_atomic(folder / MANIFEST, "".join(f"{line}\n" for line in lines))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from error


def _write_npz(file: Path, embeddings: Embeddings) -> None:
    # Text arrays of a fixed width, and bytes: they are read back without running pickled code.
    arrays = {"paths": np.array(embeddings.paths, "U"), "modalities": np.array(embeddings.modalities, "U")}
    if embeddings.about:
        arrays["manifest"] = np.frombuffer("\n".join(embeddings.lines()).encode(), np.uint8)
    with open(file, "wb") as stream:  # of a path savez changes the ending
        np.savez(stream, vectors=embeddings.vectors, **arrays)  # type: ignore[arg-type]


def _write_safetensors(file: Path, embeddings: Embeddings) -> None:
    from safetensors.numpy import save_file

    metadata = {"paths": json.dumps(list(embeddings.paths)), "modalities": json.dumps(list(embeddings.modalities))}
    if embeddings.about:
        metadata["manifest"] = "\n".join(embeddings.lines())
    save_file({"vectors": np.ascontiguousarray(embeddings.vectors)}, file, metadata)


def _write_parquet(file: Path, embeddings: Embeddings) -> None:
    pyarrow = need("pyarrow", "parquet")
    parquet = need("pyarrow.parquet", "parquet")
    vectors = embeddings.vectors
    columns = {
        # Parquet's text is UTF-8; bytes of a path that are not are written as escapes.
        "path": pyarrow.array(
            [path.encode("utf-8", "backslashreplace").decode() for path in embeddings.paths], pyarrow.string()
        ),
        "modality": pyarrow.array(embeddings.modalities, pyarrow.string()),
        "vector": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.ravel()), vectors.shape[1]),
    }
    for name, kind in COLUMNS.items() if embeddings.about else ():
        values = [row.get(name) for row in embeddings.about]
        if name == "metadata":
            values = [json.dumps(value) if value else None for value in values]
        columns[name] = pyarrow.array(values, pyarrow.type_for_alias(kind))
    parquet.write_table(pyarrow.table(columns), file)


WRITERS: dict[str, Callable[[Path, Embeddings], None]] = {
    ".npz": _write_npz,
    ".safetensors": _write_safetensors,
    ".parquet": _write_parquet,
}
"""By the ending of the file."""


def write_file(path: Path, embeddings: Embeddings) -> None:
    """A file of a kind that its ending names, whole or not at all."""
    with write_atomic(path) as temporary:
        WRITERS[path.suffix.lower()](temporary, embeddings)


def read_embeddings(path: Path) -> Embeddings:
    """What a file or folder holds. Rows of a foreign file need no modality and no further fields.

    Raises:
        UserError: no such file, an unknown ending, or not what is described above.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    read = _read_folder if path.is_dir() else READERS.get(path.suffix.lower())
    if read is None:
        raise UserError(f"{path}: unknown ending {path.suffix!r}; known: {', '.join(READERS)}, or a folder")
    try:
        found = read(path)
    except (OSError, EOFError, BadZipFile, ValueError, KeyError, TypeError) as error:
        reason = f"no {error.args[0]} in it" if isinstance(error, KeyError) else one_line(error)
        reason = "it holds pickled objects, which are not loaded" if "pickle" in reason else reason
        raise UserError(f"{path}: not vectors with paths ({reason})") from error
    vectors, count = found.vectors, len(found.paths)
    if vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise UserError(f"{path}: vectors are floats (n, E), not {vectors.dtype} {vectors.shape}")
    if not len(vectors) == count == len(found.modalities) or (found.about and len(found.about) != count):
        raise UserError(f"{path}: {len(vectors)} vectors, {count} paths and {len(found.modalities)} modalities")
    return found


def _of_lines(vectors: np.ndarray, text: str) -> Embeddings:
    lines = [line for line in text.split("\n") if line]
    about = [json.loads(line) for line in lines[: len(vectors)]]
    paths, modalities = [row["path"] for row in about], [row.get("modality", "") for row in about]
    return Embeddings(vectors, paths, modalities, about)


def _read_folder(folder: Path) -> Embeddings:
    vectors = np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False)
    return _of_lines(vectors, (folder / MANIFEST).read_text(encoding="utf-8"))


def _read_npz(path: Path) -> Embeddings:
    with np.load(path, allow_pickle=False) as data:
        for name in {"vectors", "paths"} - {*data}:
            raise KeyError(name)
        if "manifest" in data:
            return _of_lines(data["vectors"], data["manifest"].tobytes().decode())
        paths = data["paths"].tolist()
        modalities = data["modalities"].tolist() if "modalities" in data else [""] * len(paths)
        return Embeddings(data["vectors"], paths, modalities)


def _read_safetensors(path: Path) -> Embeddings:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            metadata, vectors = file.metadata() or {}, file.get_tensor("vectors")
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    if "manifest" in metadata:
        return _of_lines(vectors, metadata["manifest"])
    paths = json.loads(metadata["paths"])
    return Embeddings(vectors, paths, json.loads(metadata.get("modalities", "null")) or [""] * len(paths))


def _read_parquet(path: Path) -> Embeddings:
    parquet = need("pyarrow.parquet", "parquet")
    table = parquet.read_table(path)
    columns = {name: table[name].to_pylist() for name in table.column_names if name != "vector"}
    vectors = np.stack(table["vector"].to_numpy(zero_copy_only=False)) if len(table) else np.empty((0, 0), np.float32)
    about = [{name: columns[name][i] for name in COLUMNS if name in columns} for i in range(len(table))]
    for row in about:
        row["metadata"] = json.loads(row["metadata"]) if row.get("metadata") else None
    return Embeddings(vectors, columns["path"], columns.get("modality") or [""] * len(table), about)


READERS: dict[str, Callable[[Path], Embeddings]] = {
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".parquet": _read_parquet,
}
