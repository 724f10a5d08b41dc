"""`onepeace mcp`: a server through which a language model of the user's may search an index (MCP, on stdio)."""

import argparse
import sys

from onepeace.commands import files, options
from onepeace.errors import need

EXAMPLES = """\
INDEX was made by: onepeace index build. The program in which you talk to a language model starts the server itself;
in most of them this goes into a file of settings:

  {"mcpServers": {"my pictures": {"command": "onepeace", "args": ["mcp", "/path/to/my.index"]}}}

The model may search and classify, and with --generator, as far as that can, also caption pictures and sounds, answer
questions about pictures and point at things. It sees the paths of the files that are found, their captions and dates,
and with --thumbnails small pictures. It can read no other file, and write none.

exit code: 0 when the program closes the connection, 1 on failure, 2 for wrong usage"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("index", metavar="INDEX", help="folder of an index")
    parser.add_argument("--generator", metavar="NAME", help="a model that captions, answers and points")
    parser.add_argument("--thumbnails", action="store_true", help="send small pictures with the files that are found")
    options.add_model(parser, None, batch_size=None, dtype=False)


def run(args: argparse.Namespace) -> int:
    need("mcp", "mcp")
    from onepeace.index import Index
    from onepeace.serve.mcp import run as serve

    with Index.open(args.index, model=args.model, device=args.device) as index:
        if sys.stdin is not None and sys.stdin.isatty():
            files.say(f"{files.counted(len(index), 'file')}; waiting for a client at stdin, Ctrl-C ends")
        return serve(index, args.generator, thumbnails=args.thumbnails)
