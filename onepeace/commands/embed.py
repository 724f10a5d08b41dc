"""`onepeace embed`: the vectors of files, with their paths, in one file for other programs."""

import argparse
import os
from pathlib import Path

from onepeace.commands import files
from onepeace.errors import UsageError, UserError, need

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
        "-o", "--output", type=Path, required=True, metavar="FILE", help="to write: .npz, .safetensors, .parquet"
    )


def run(args: argparse.Namespace) -> int:
    from onepeace.files.embeddings import WRITERS, Embeddings, write_file

    ending = args.output.suffix
    if ending.lower() not in WRITERS:
        raise UsageError(f"{args.output}: unknown ending {ending!r}; known: {', '.join(WRITERS)}")
    files.check_folder_of(args.output)
    if ending.lower() == ".parquet":
        need("pyarrow", "parquet")
    found, problems = files.find(args)

    model = files.load(args)
    vectors, found, failed = files.encode(model, found, args.batch_size)
    paths, modalities = [os.fspath(file.path) for file in found], [file.modality for file in found]
    code = files.exit_code([*problems, *failed], len(found))
    if not found:
        raise UserError(f"{args.output}: not written, as not one file has a vector")
    write_file(args.output, Embeddings(vectors.numpy(), paths, modalities))
    files.say(f"{len(found)} vectors of {model.embed_dim} numbers in {args.output}")
    return code
