"""`onepeace embed`: the vectors of files, with their paths, in one file for other programs."""

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from onepeace.commands import files
from onepeace.errors import UsageError, need
from onepeace.files.atomic import write_atomic

if TYPE_CHECKING:
    from torch import Tensor

EXAMPLES = """\
the vectors are unit length, float32, in the order of the files:
  .npz          arrays vectors (n, E), paths (n,), modalities (n,)
  .safetensors  tensor vectors (n, E); paths and modalities are JSON lists in the metadata
  .parquet      columns path, modality, vector (needs the extra "parquet")

  onepeace embed pictures sounds -o vectors.npz

exit code: 0, 1 when files could not be read (listed at the end, not in the output), 2 for wrong usage"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    files.add_arguments(parser)
    parser.epilog = EXAMPLES
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help=f"to write: {', '.join(WRITERS)}"
    )


def run(args: argparse.Namespace) -> int:
    writer = WRITERS.get(args.output.suffix.lower())
    if writer is None:
        raise UsageError(f"{args.output}: unknown ending {args.output.suffix!r}; known: {', '.join(WRITERS)}")
    files.check_folder_of(args.output)
    if writer is _write_parquet:
        need("pyarrow", "parquet")
    found, problems = files.find(args)

    model = files.load(args)
    vectors, found, failed = files.encode(model, found, args.batch_size)
    paths, modalities = [os.fspath(file.path) for file in found], [file.modality for file in found]
    with write_atomic(args.output) as temporary:
        writer(temporary, vectors, paths, modalities)
    files.say(f"{len(found)} vectors of {model.embed_dim} numbers in {args.output}")
    return files.exit_code([*problems, *failed], len(found))


def _write_npz(file: Path, vectors: "Tensor", paths: list[str], modalities: list[str]) -> None:
    import numpy as np

    with open(file, "wb") as stream:  # of a path savez changes the ending
        # Text arrays of a fixed width: they are read back without running pickled code.
        np.savez(stream, vectors=vectors.numpy(), paths=np.array(paths, "U"), modalities=np.array(modalities, "U"))


def _write_safetensors(file: Path, vectors: "Tensor", paths: list[str], modalities: list[str]) -> None:
    from safetensors.torch import save_file

    metadata = {"paths": json.dumps(paths), "modalities": json.dumps(modalities)}
    save_file({"vectors": vectors}, file, metadata)


def _write_parquet(file: Path, vectors: "Tensor", paths: list[str], modalities: list[str]) -> None:
    pyarrow = need("pyarrow", "parquet")
    parquet = need("pyarrow.parquet", "parquet")
    flat = pyarrow.array(vectors.flatten().numpy())
    columns = {
        # Parquet's text is UTF-8; bytes of a path that are not are written as escapes.
        "path": pyarrow.array([path.encode("utf-8", "backslashreplace").decode() for path in paths], pyarrow.string()),
        "modality": pyarrow.array(modalities, pyarrow.string()),
        "vector": pyarrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
    }
    parquet.write_table(pyarrow.table(columns), file)


WRITERS = {".npz": _write_npz, ".safetensors": _write_safetensors, ".parquet": _write_parquet}
