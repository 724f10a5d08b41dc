"""`onepeace map`: the files of an index as points of a plane, in a page to move about in."""

import argparse
from pathlib import Path

from onepeace.commands import files, number
from onepeace.errors import UsageError, need

EXAMPLES = """\
the page needs nothing else and no network: colours for kinds, a picture and a name under the mouse, a click to open,
the wheel to zoom, a field to find names, folders and captions.

  onepeace map my.index -o map.html --png map.png
  onepeace map my.index --method umap          # neighbours together; needs the extra "map", takes longer"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("index", type=Path, metavar="INDEX", help="folder of an index (onepeace index build)")
    text = "page to write (default: map.html)"
    parser.add_argument("-o", "--output", type=Path, default=Path("map.html"), metavar="FILE", help=text)
    text = "also a picture, as its ending says: .png, .pdf, .svg ..."
    parser.add_argument("--png", type=Path, metavar="FILE", help=text)
    parser.add_argument("--method", choices=("pca", "umap"), default="pca", help="how (default: pca)")
    text = "pictures and texts in the page, the others are points only (default: 2000)"
    parser.add_argument("--thumbnails", type=number.count, default=2000, metavar="N", help=text)


def run(args: argparse.Namespace) -> int:
    for path in filter(None, (args.output, args.png)):
        files.check_folder_of(path)
    if args.method == "umap":
        need("umap", "map")  # now, and not after the work
    if args.png:
        known = need("matplotlib.backend_bases", "plot").FigureCanvasBase.get_supported_filetypes()
        if args.png.suffix and args.png.suffix[1:].lower() not in known:
            raise UsageError(f"{args.png}: no picture by its ending; known: {', '.join(known)}")

    from onepeace.files.atomic import write_text_atomic
    from onepeace.index.index import Index
    from onepeace.serve.map import Map, links_from

    with Index.open(args.index) as index:
        made = Map(index, args.method, args.thumbnails)
    write_text_atomic(args.output, made.render(links_from(args.output.parent)))
    size = f"{args.output.stat().st_size / 1e6:.1f} MB"
    pictures = files.counted(len(made.thumbnails), "picture")
    files.say(f"{files.counted(len(made.items), 'file')}, {pictures}: {args.output} ({size})")
    if args.png:
        made.draw(args.png)
        files.say(f"{args.png}: a picture of it")
    return 0
