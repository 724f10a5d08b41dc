"""`onepeace mcp`: a server through which a language model of the user's may search an index (MCP, on stdio)."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from onepeace.commands import files
from onepeace.errors import UserError, need

EXAMPLES = """\
INDEX was made by: onepeace index build. The program in which you talk to a language model starts the server itself;
in most of them this goes into a file of settings:

  {"mcpServers": {"my pictures": {"command": "onepeace", "args": ["mcp", "/path/to/my.index"]}}}

The model may search and classify, and with --generator, as far as that can, also caption pictures and sounds, answer
questions about pictures and point at things. It sees the paths of the files that are found, their captions and dates,
and with --thumbnails small pictures. It can read no other file, and write none.

exit code: 0 when the program closes the connection, 1 on failure, 2 for wrong usage"""


class Later:
    """A generator that is loaded with the first question, so that the server answers at once."""

    def __init__(self, name: str, **options: Any) -> None:
        self.name, self.options = name, options

    @cached_property
    def loaded(self) -> Any:
        from onepeace.generative.generator import load_generator

        return load_generator(self.name, **self.options)

    def caption(self, images: Any, **options: Any) -> Any:
        return self.loaded.caption(images, **options)

    def answer(self, images: Any, questions: Any) -> Any:
        return self.loaded.answer(images, questions)

    def ground(self, images: Any, phrases: Any) -> Any:
        return self.loaded.ground(images, phrases)


def takes(name: str) -> Mapping[str, Sequence[Any]]:
    """The kinds of files that a generator takes, by tool, as its folder says.

    A model that may have to be downloaded would keep the client waiting: it is taken for one that can do everything.

    Raises:
        UserError: no such model, or one that writes nothing.
    """
    from onepeace.generative.generator import writes
    from onepeace.generative.tasks import FILE, read_tasks
    from onepeace.hub.architectures import architecture
    from onepeace.hub.folder import read_config
    from onepeace.hub.registry import RELEASED, find
    from onepeace.hub.resolve import resolve
    from onepeace.serve.tools import TAKES

    path, released = Path(name).expanduser(), find(name)
    on_hub = released is None and len(path.parts) == 2 and not path.is_absolute()
    if path.exists() or not (released or on_hub):
        folder = resolve(name)
        config = read_config(folder)
        if writes(config):
            rows = read_tasks(*([folder / FILE] if (folder / FILE).is_file() else []))
            able = {tool: kinds for tool, kinds in TAKES.items() if tool in rows and rows[tool].image is not None}
            if architecture(config.architecture).generates:
                return able
            on = next(head["on"] for head in config.model.heads.values() if head["kind"] == "caption")
            return {tool: on for tool in able if not rows[tool].fields}  # it reads no words
    elif on_hub or RELEASED[str(released)].generates:
        return TAKES
    raise UserError(f"{name}: writes nothing; name a model that does, as tiny-captions")


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
    able = () if args.generator is None else (Later(args.generator, **options), takes(args.generator))
    with Index.open(args.index, model=args.model, **options) as index:
        if sys.stdin is not None and sys.stdin.isatty():
            files.say(f"{files.counted(len(index), 'file')}; waiting for a client at stdin, Ctrl-C ends")
        serve_stdio(create_server(IndexTools(index, *able), thumbnails=args.thumbnails))
    return 0
