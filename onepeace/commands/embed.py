"""`onepeace embed`: the vectors of files, with their paths, in one file for other programs."""

import argparse
import os
from typing import Any

from onepeace.commands import files, options
from onepeace.errors import UsageError, UserError, need

EXAMPLES = f"""\
the vectors are unit length, float32, in the order of the files:
  .npz          arrays vectors (n, E), paths (n,), modalities (n,)
  .parquet      columns path, modality, vector (needs the extra "parquet")

  onepeace embed pictures sounds -o vectors.npz

{files.EXIT_CODES}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.set_defaults(kept="nothing is written; an index keeps what it has: onepeace index build")
    files.add_paths(parser)
    options.add_output(parser, "FILE", "to write: .npz or .parquet")
    options.add_model(parser)


def run(args: argparse.Namespace) -> int:
    from onepeace.files.embeddings import WRITERS, Embeddings, write_file

    ending = args.output.suffix.lower()
    if ending not in WRITERS:
        raise UsageError(f"{args.output}: unknown ending {ending!r}; known: {', '.join(WRITERS)}")
    files.check_output(args.output, args.force)
    if ending == ".parquet":
        need("pyarrow", "parquet")
    found, problems = files.find(args.paths)
    model = options.load(args)
    found = files.readable(found, model.modalities)
    items = [{file.modality: file.path} for file in found]
    vectors: Any
    vectors, failures = model.encode(items, batch_size=args.batch_size, on_error="skip")
    failed = {failure.index: files.Unreadable(found[failure.index].path, failure.reason) for failure in failures}
    encoded = [file for index, file in enumerate(found) if index not in failed]
    code = files.exit_code([*problems, *failed.values()], len(encoded))
    if not encoded:
        raise UserError(f"{args.output}: not written, as not one file has a vector")
    paths, modalities = [os.fspath(file.path) for file in encoded], [file.modality for file in encoded]
    write_file(args.output, Embeddings(vectors.numpy(), paths, modalities))
    files.say(f"{len(encoded)} vectors of {model.embed_dim} numbers in {args.output}")
    return code
