"""`onepeace mcp`: an MCP server on stdio, with which a language model can search an index."""

import argparse
import sys

from onepeace.commands import files, options
from onepeace.errors import need

EXAMPLES = """\
INDEX was built by: onepeace index build. Your MCP client (the program in which you chat with a language model) starts
the server; in most clients, add this to the settings file:

  {"mcpServers": {"my pictures": {"command": "onepeace", "args": ["mcp", "/path/to/my.index"]}}}

The model can search and classify and, depending on --generator, also caption pictures and sounds, answer questions
about pictures and ground phrases in them. It sees the paths, captions and dates of the hits and, with --thumbnails,
small pictures. It cannot read any other file, and cannot write.

  onepeace mcp my.index --thumbnails

exit code: 0 when the client closes the connection, 1 on failure, 2 for wrong usage"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("index", metavar="INDEX", help="folder of an index")
    parser.add_argument("--generator", metavar="NAME", help="generative model for captions, answers and boxes")
    parser.add_argument("--thumbnails", action="store_true", help="send thumbnails with the hits")
    options.add_model(parser, None, batch_size=None, dtype=False)


def run(args: argparse.Namespace) -> int:
    need("mcp", "mcp")
    from onepeace.index import Index
    from onepeace.serve.mcp import run as serve

    with Index.open(args.index, model=args.model, device=args.device) as index:
        if sys.stdin is not None and sys.stdin.isatty():
            files.say(f"{files.counted(len(index), 'file')}; waiting for an MCP client on stdin; press Ctrl-C to stop")
        return serve(index, args.generator, thumbnails=args.thumbnails)
