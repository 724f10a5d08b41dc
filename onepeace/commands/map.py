"""`onepeace map`: the files of an index as points of a plane, in a page to move about in."""

import argparse
from pathlib import Path

from onepeace.commands import files
from onepeace.errors import need

EXAMPLES = """\
the page needs nothing else and no network: colours for kinds, a picture and a name under the mouse, a click to open,
the wheel to zoom, a field to find names, folders and captions.

  onepeace map my.index -o map.html --png map.png
  onepeace map my.index --method umap          # neighbours together; needs the extra "map", takes longer"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("index", type=Path, metavar="INDEX", help="folder of an index")
    text = "page to write (map.html)"
    parser.add_argument("-o", "--output", type=Path, default=Path("map.html"), metavar="FILE", help=text)
    text = "also a picture, as its ending says: .png, .pdf, .svg ..."
    parser.add_argument("--png", type=Path, metavar="FILE", help=text)
    parser.add_argument("--method", choices=("pca", "umap"), default="pca", metavar="NAME", help="pca or umap (pca)")


def run(args: argparse.Namespace) -> int:
    for path in filter(None, (args.output, args.png)):
        files.check_output(path)
    if args.method == "umap":
        need("umap", "map")  # now, and not after the work
    from onepeace.index import Index
    from onepeace.serve.map import write_map

    with Index.open(args.index) as index:
        write_map(index, args.output, png=args.png, method=args.method)
        files.say(f"{files.counted(len(index), 'file')}: {args.output}{f' and {args.png}' if args.png else ''}")
    return 0
