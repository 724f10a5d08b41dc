"""`onepeace embed`: the vectors of files, tables and texts as one file for other programs."""

import argparse
import sys
from collections.abc import Iterator
from itertools import chain

from onepeace.commands import files, options
from onepeace.errors import UsageError

STDIN = "-"
EXAMPLES = f"""\
PATHS are files, folders, tables (.csv, .tsv, .jsonl) or webdataset shards (.tar, .tar.gz); - stands for texts on stdin,
one a line. A long sound has a vector for every 10 s, a video one for every scene, and others for its sound.

Each vector has unit length and comes with path, kind (image, audio, text, video), modality, and start and end in
seconds, which are missing for whole files. Texts have the paths text::1, text::2, ...: those of --text, then the lines
of stdin. Arrays of an .npz file: vectors, paths, kinds, modalities, starts, ends.

  onepeace embed Pictures Music -o vectors.npz
  onepeace embed captions.csv -o vectors.parquet --model one-peace
  onepeace embed --text "a dog" --text "a cat" -o words.npz
  sort -u words.txt | onepeace embed - -o words.npz

{files.EXIT_CODES}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.set_defaults(kept="nothing is written; an index keeps what was embedded (see: onepeace index build)")
    text = "files, folders, tables or shards, and - for lines of stdin"
    parser.add_argument("paths", nargs="*", metavar="PATHS", help=text)
    parser.add_argument("--text", action="append", default=[], metavar="TEXT", help="a text (repeatable)")
    options.add_output(parser, "FILE", "output file: .npz or .parquet")
    options.add_model(parser)


def run(args: argparse.Namespace) -> int:
    from onepeace.index.export import check_extension, embed_files
    from onepeace.index.sources import roots_of

    paths = [path for path in args.paths if path != STDIN]
    lines = _lines_of_stdin() if STDIN in args.paths else iter(())
    if not args.paths and not args.text:
        raise UsageError("nothing to embed; give PATHS, --text, or - for lines of stdin")
    if not all(text.strip() for text in args.text):
        raise UsageError("--text is empty; give at least one word")
    files.check_output(args.output, args.force, inputs=paths)
    check_extension(args.output)
    roots_of(paths)  # a missing path is refused before the model is loaded
    embedder = options.load(args)
    written = embed_files(embedder, paths, args.output, texts=chain(args.text, lines), batch_size=args.batch_size)
    for kind, number in written.left_out.items():
        files.say(f"{files.counted(number, f'{kind} file')} skipped: this model does not read {kind}")
    files.say_other_kinds(written.other_kinds)
    for note in written.notes:
        files.say(f"{note.path}: {note.reason} (embedded)")
    if written.vectors:
        files.say(f"{files.counted(written.vectors, 'vector')} of {embedder.embed_dim} dimensions in {args.output}")
    else:
        files.say(f"no vector, so {args.output} is not written")
    return files.exit_code(written.problems, written.added + written.copied)


def _lines_of_stdin() -> Iterator[str]:
    """Yield the lines of stdin that are not empty, stripped."""
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            text = line.decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise UsageError(f"stdin: line {number} is not UTF-8") from error
        if text:
            yield text
