"""`onepeace mcp`: a server through which a language model of the user's may search an index (MCP, on stdio)."""

import argparse
import sys
from functools import cached_property
from typing import Any

from onepeace.commands import files
from onepeace.errors import need

EXAMPLES = """\
INDEX was made by: onepeace index build. The program in which you talk to a language model starts the server itself;
in most of them this goes into a file of settings:

  {"mcpServers": {"my pictures": {"command": "onepeace", "args": ["mcp", "/path/to/my.index"]}}}

The model may search and classify, and with --generator also caption pictures, answer questions about them and point at
things. It sees the paths of the files that are found, their captions and dates, and with --thumbnails small pictures.
It can read no other file, and write none.

exit code: 0 when the program closes the connection, 1 on failure, 2 for wrong usage"""


class Later:
    """A generator that is loaded with the first question, so that the server answers at once."""

    def __init__(self, name: str, **options: Any) -> None:
        self.name, self.options = name, options

    @cached_property
    def loaded(self) -> Any:
        from onepeace.generative.generator import load_generator

        return load_generator(self.name, **self.options)

    def caption(self, images: Any) -> Any:
        return self.loaded.caption(images)

    def answer(self, images: Any, questions: Any) -> Any:
        return self.loaded.answer(images, questions)

    def ground(self, images: Any, phrases: Any) -> Any:
        return self.loaded.ground(images, phrases)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("index", metavar="INDEX", help="folder of an index")
    parser.add_argument("--model", metavar="NAME", help="of the index, where it has another name here")
    parser.add_argument("--generator", metavar="NAME", help="a model that captions, answers and points")
    parser.add_argument("--thumbnails", action="store_true", help="send small pictures with the files that are found")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps; default: the best there is")
    parser.add_argument("--dtype", default="auto", metavar="NAME", help="float32, bfloat16, float16 or auto")


def run(args: argparse.Namespace) -> int:
    need("mcp", "mcp")
    from onepeace.index.index import Index
    from onepeace.serve.mcp import create_server, serve_stdio
    from onepeace.serve.tools import IndexTools

    options = {"device": args.device, "dtype": args.dtype}
    generator = None if args.generator is None else Later(args.generator, **options)
    with Index.open(args.index, model=args.model, **options) as index:
        if sys.stdin is not None and sys.stdin.isatty():
            files.say(f"{files.counted(len(index), 'file')}; waiting for a client at stdin, Ctrl-C ends")
        serve_stdio(create_server(IndexTools(index, generator), thumbnails=args.thumbnails))
    return 0
