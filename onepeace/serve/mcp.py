"""An MCP server of an index, for the programs in which people talk to language models (package mcp).

The tools are the methods of `Tools`: their signatures and docstrings are what a model is offered. A path that a model
names is looked up among the files of the index and never opened by itself, and nothing is written. What is wrong with a
call comes back as the tool's result, one line for the model to read.
"""

import functools
import inspect
import io
import json
import logging
import os
import re
import sys
from base64 import b64encode
from collections.abc import Callable
from typing import Any, Literal

import anyio
from mcp.server.mcpserver import MCPServer
from mcp.server.stdio import stdio_server
from mcp_types import CallToolResult, ContentBlock, ImageContent, TextContent, ToolAnnotations

from onepeace import __version__
from onepeace.errors import UserError, one_line
from onepeace.files.source import describe
from onepeace.index import Hit, Index, Item, Query
from onepeace.index.sources import without_surrogates
from onepeace.serve import media
from onepeace.serve.generator import Generator
from onepeace.serve.service import Service
from onepeace.serve.uploads import Refused

logger = logging.getLogger(__name__)

THUMBNAILS = 10
"""Pictures that come with the files of one search."""
LABELS, COPIES, CAPTION = 5, 5, 300
"""Labels and copies of a file that are named, and characters of its caption."""
ABOUT = """\
An index of {count} pictures, sounds, texts and videos on the user's computer, searched by meaning. Files are named by \
their paths, as search gives them; no other file can be read."""
ESCAPE = re.compile(
    r"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)
"""In JSON: a backslash, a letter of two halves, and half of one alone, which no parser takes."""

Kind = Literal["image", "audio", "text", "video"]


def run(index: Index, generator: str | None = None, *, thumbnails: bool = False) -> int:
    """Answer the client at stdin and stdout until it closes them.

    Args:
        generator: name of a model that captions, answers and points; its tools are offered with it.
        thumbnails: small copies of the pictures come with the files that are found.
    """
    server = create_server(Service(index, Generator(generator) if generator else None), thumbnails=thumbnails)

    async def serve() -> None:
        own = anyio.wrap_file(_Lines(sys.stdin.buffer, encoding="utf-8", errors="replace"))
        async with stdio_server(own) as (read, write):
            lowlevel = server._lowlevel_server
            await lowlevel.run(read, write, lowlevel.create_initialization_options())

    anyio.run(serve)
    return 0


class _Lines(io.TextIOWrapper):
    """Lines of JSON without halves of letters: the SDK drops a line that holds one, and never answers it."""

    def readline(self, size: int = -1) -> str:  # type: ignore[override]
        return ESCAPE.sub(lambda found: r"\ufffd" if found[1] else found[0], super().readline(size))


def create_server(service: Service, *, thumbnails: bool = False) -> MCPServer[Any]:
    """The server, for any transport."""
    tools = Tools(service)
    offered: list[Callable[..., Any]] = [tools.search, tools.classify]
    offered += [getattr(tools, task) for task in (service.generator.tasks if service.generator else ())]
    about = ABOUT.format(count=sum(service.about()["files"].values()))
    server: MCPServer[Any] = MCPServer("onepeace", version=__version__, instructions=about, log_level="WARNING")
    for tool in offered:
        pictures = thumbnails and tool.__name__ == "search"
        server.add_tool(
            _answering(tool, service if pictures else None),
            description=inspect.getdoc(tool),
            annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False),
        )
    return server


class Tools:
    """What a language model may ask of an index. Methods raise `UserError` for what should be asked in another way."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def search(
        self,
        text: str | None = None,
        like: str | None = None,
        without: str | None = None,
        only: Kind | None = None,
        where: str | None = None,
        after: str | None = None,
        before: str | None = None,
        path: str | None = None,
        top: int = 10,
    ) -> dict[str, Any]:
        """Find pictures, sounds, texts and videos of the index by what they show, sound like or say, best first.

        Give text, like, or both for a mix. "match" says how sure a hit is, from 0 to 1: the share of unrelated queries
        that find nothing better here; above 0.95 it is likely right, below 0.67 unlikely. "relevant" is false when no
        file is likely to be what is meant. "start" and "end" are seconds.

        Args:
            text: a description in English of what is seen or heard, as "a dog barking in the snow"
            like: path of a file of the index, to find others that are like it
            without: words to move away from
            only: find files of this kind only
            where: a condition on size, date, width, height, duration, kind, path or caption, as
                duration < 5 or width >= 1000 and "dog" in caption
            after: find files from this date on only, as 2024, 2024-05 or 2024-05-01
            before: find files from before this date only
            path: find files with such a path only, as "holidays/**/*.jpg"
            top: how many files, 1 to 100
        """
        if not (text or like):
            raise UserError("nothing to search for; give text, like or both")
        limit = self.service.limits.top
        if not 1 <= top <= limit:
            raise UserError(f"top is {top}; give 1 to {limit}")
        likes = self.item(like).path if like else ()
        query = Query(text=self._short(text or "", "text") or (), like=likes, without=without or ())
        found = self.service.search(
            query, only=(only,) if only else (), where=where or None, after=after or None, before=before or None,
            path=path or None, top=top,
        )  # fmt: skip
        return {"relevant": found.relevant, "compared": found.compared, "files": [_file(hit) for hit in found]}

    def classify(self, paths: list[str], labels: list[str]) -> dict[str, Any]:
        """Say which of some labels fits each of some files of the index, with probabilities; the best five labels.

        Args:
            paths: of files of the index, as search gives them
            labels: names to choose from, as ["dog", "cat", "bird"]
        """
        items = self._items(paths)
        found = self.service.classify([self.service.value(item) for item in items], labels)
        best = [{label: round(share, 4) for label, share in list(shares.items())[:LABELS]} for shares in found]
        return {"files": [{**_named(item), "labels": labels} for item, labels in zip(items, best, strict=True)]}

    def caption(self, paths: list[str]) -> dict[str, Any]:
        """Describe each of some pictures of the index in a sentence; sounds too, where the model hears. "problem" says
        why a file has no caption.

        Args:
            paths: of pictures or sounds of the index, as search gives them
        """
        return {"files": [{**_named(item), **self._captioned(item)} for item in self._items(paths)]}

    def answer(self, path: str, question: str) -> dict[str, Any]:
        """Answer a question about what a picture of the index shows.

        Args:
            path: of a picture of the index, as search gives it
            question: in English, as "what colour is the car?"
        """
        found = self._generate("answer", self.item(path), self._short(question, "question"))
        return {"answer": str(found), "confidence": round(found.confidence, 3)}

    def ground(self, path: str, phrase: str) -> dict[str, Any]:
        """Say where in a picture of the index a thing is: its left, upper, right and lower edge in pixels. There is
        always a box; a low confidence may mean that the thing is not there.

        Args:
            path: of a picture of the index, as search gives it
            phrase: the thing, in English, as "the red car on the left"
        """
        found = self._generate("ground", self.item(path), self._short(phrase, "phrase"))
        return {"box": [round(edge, 1) for edge in found.box], "confidence": round(found.confidence, 3)}

    def item(self, path: str) -> Item:
        """The file of the index at a path as results show it. UserError if there is none."""
        # Bytes of a name that are no text are shown as \xNN.
        raw = re.sub(r"\\x([89a-f][0-9a-f])", lambda escape: os.fsdecode(bytes.fromhex(escape[1])), path)
        try:
            return self.service.item(raw)
        except Refused as error:
            reason = f"{describe(path)}: no such file in the index; give a path as search shows it"
            raise UserError(reason) from error

    def _items(self, paths: list[str]) -> list[Item]:
        paths, limit = list(dict.fromkeys(paths)), self.service.limits.inputs
        if not 1 <= len(paths) <= limit:
            raise UserError(f"paths has {len(paths)} files; give 1 to {limit}")
        return [self.item(path) for path in paths]

    def _captioned(self, item: Item) -> dict[str, Any]:
        try:
            found = self._generate("caption", item)
        except UserError as error:
            return {"problem": one_line(error)}
        return {"caption": str(found), "confidence": round(found.confidence, 3)}

    def _generate(self, task: str, item: Item, words: str = "") -> Any:
        if self.service.generator is None:
            raise UserError(f"{task} needs a model that writes; start with --generator NAME")
        return self.service.generator(task, self.service.value(item), words)

    def _short(self, text: str, name: str) -> str:
        return self.service.request().text(text, name)


def shown(path: str) -> str:
    """A path as a model sees it: bytes that are no text as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _named(item: Item) -> dict[str, Any]:
    return {"path": shown(item.path), "kind": item.modality}


def _file(hit: Hit) -> dict[str, Any]:
    """A hit without what is not known of it, numbers as exact as a model needs them."""
    fields = {**hit.to_dict(), **_named(hit.item), "copies": [shown(path) for path in hit.copies[:COPIES]]}
    if hit.item.caption and len(hit.item.caption) > CAPTION:
        fields["caption"] = f"{hit.item.caption[:CAPTION]}…"
    rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in fields.items()}
    return {key: value for key, value in rounded.items() if value not in (None, [], {}, "")}


def _answering(tool: Callable[..., dict[str, Any]], pictures: Service | None) -> Callable[..., CallToolResult]:
    """A tool whose results and errors are what MCP sends.

    Args:
        pictures: adds small pictures of the files that were found.
    """

    @functools.wraps(tool)
    def answer(**given: Any) -> CallToolResult:
        try:
            found = tool(**given)
        except UserError as error:
            return _error(one_line(error))
        except Exception as error:  # a fault of ours, or of the disk: the server goes on
            logger.exception("%s failed", tool.__name__)
            reason = f"{type(error).__name__}: {one_line(error)}"
            return _error(f"{tool.__name__} failed ({reason}); the user can see more in the server's log")
        text = without_surrogates(json.dumps(found, ensure_ascii=False))
        content: list[ContentBlock] = [TextContent(text=text)]
        if pictures is not None:
            content += _thumbnails(pictures, found["files"])
        return CallToolResult(content=content, structured_content=json.loads(text))

    answer.__annotations__ = {**tool.__annotations__, "return": CallToolResult}
    return answer


def _error(said: str) -> CallToolResult:
    # A path may hold bytes that are no text, and what cannot be sent ends the server.
    return CallToolResult(content=[TextContent(text=without_surrogates(said))], is_error=True)


def _thumbnails(service: Service, files: list[dict[str, Any]]) -> list[ContentBlock]:
    """The path and a small picture of each of the first files that have one."""
    content: list[ContentBlock] = []
    for file in [file for file in files if file["kind"] in ("image", "video")][:THUMBNAILS]:
        try:
            body = media.thumbnail(Tools(service).item(file["path"]), service.roots, at=file.get("start", 0.0))
        except UserError:  # gone or changed since it was embedded
            continue
        if body.type == "image/webp":  # not the waveform of a video without pictures
            data = b64encode(body.read()).decode()
            content += [TextContent(text=file["path"]), ImageContent(data=data, mime_type=body.type)]
    return content
