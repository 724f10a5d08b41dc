"""An MCP server over an index, for MCP clients such as chat programs (package mcp).

The tools are the methods of `Tools`; their signatures and docstrings become the tool descriptions. A path that the
model names is looked up in the index and never opened directly, and nothing is written. Errors of a call are returned
as the tool's result, in one line for the model to read.
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
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, cast

import anyio
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.stdio import stdio_server
from mcp_types import CallToolResult, ContentBlock, ImageContent, TextContent, ToolAnnotations
from pydantic import ValidationError

from onepeace import __version__
from onepeace.errors import UserError, one_line
from onepeace.extensions import imported
from onepeace.files.source import describe
from onepeace.index import Hit, Index, Item, Query
from onepeace.index.filters import FIELDS, Condition, short_forms
from onepeace.index.items import without_surrogates
from onepeace.serve import media
from onepeace.serve.requests import FILTER_CHARACTERS, TOP, Refused, first_error
from onepeace.serve.service import Service

logger = logging.getLogger(__name__)

THUMBNAILS = 10
"""Maximum number of thumbnails sent with the hits of a search."""
LABELS = 5
"""Maximum number of labels listed per file."""
COPIES = 5
"""Maximum number of copies listed per file."""
WRITING_TOOLS = "onepeace.generative.serving.WritingTools"
"""Class of the tools of a server that has a generative model, named as its tasks."""
CAPTION = 300
"""Maximum number of characters of a caption."""
ABOUT = """\
Semantic search over an index of {count} pictures, sounds, texts and videos on the user's computer. Refer to files \
by the paths that search returns; no other file can be read."""
HALF_OF_A_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
"""An escape of JSON that is half of a character, or of none."""


def run(index: Index, generator: str | None = None, *, thumbnails: bool = False) -> int:
    """Serve the client on stdin and stdout until it closes them.

    Args:
        generator: name of a generative model; adds the tools for captions, answers and boxes.
        thumbnails: send thumbnails with the hits.
    """
    anyio.run(create_server(Service(index, generator), thumbnails=thumbnails).run_stdio_async)
    return 0


class _Server(MCPServer[Any]):
    """Server whose errors about arguments are one line, as those of the tools, and that knows all arguments it gets."""

    async def call_tool(self, name: str, arguments: dict[str, Any], *args: Any, **options: Any) -> Any:
        for tool in await self.list_tools():
            allowed = tool.input_schema["properties"]
            unknown = [argument for argument in arguments if argument not in allowed]
            if tool.name == name and unknown:
                return _error(f"{unknown[0]}: no such argument of {name}; it has {', '.join(allowed)}")
        try:
            return await super().call_tool(name, arguments, *args, **options)
        except ToolError as error:
            if isinstance(error.__cause__, ValidationError):
                return _error(first_error(error.__cause__.errors(), 0))
            raise

    async def run_stdio_async(self) -> None:
        server = self._lowlevel_server
        async with stdio_server(stdin=cast(Any, _lines())) as (read_stream, write_stream):
            await server.run(read_stream, write_stream, server.create_initialization_options())


async def _lines() -> AsyncIterator[str]:
    """The lines of stdin as valid Unicode; one with half of a surrogate pair would not be answered."""
    async for line in anyio.wrap_file(io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8", errors="replace")):
        if HALF_OF_A_PAIR.search(line):
            with suppress(ValueError, RecursionError):  # not JSON, which is refused later
                line = without_surrogates(json.dumps(json.loads(line), ensure_ascii=False))
        yield line


def create_server(service: Service, *, thumbnails: bool = False) -> MCPServer[Any]:
    """Create the server, for any transport."""
    tools = Tools(service)
    functions: list[Callable[..., Any]] = [tools.search, tools.classify]
    if service.generator is not None:
        writing = imported(WRITING_TOOLS)(tools)
        functions += [getattr(writing, task) for task in service.generator.tasks]
    instructions = ABOUT.format(count=sum(service.about()["files"].values()))
    server = _Server("onepeace", version=__version__, instructions=instructions, log_level="WARNING")
    for tool in functions:
        has_thumbnails = thumbnails and tool.__name__ == "search"
        server.add_tool(
            _answering(tool, service if has_thumbnails else None),
            description=describe_tool(tool),
            annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False),
        )
    return server


def describe_tool(tool: Callable[..., Any]) -> str:
    """The docstring of a tool, with the fields of conditions (`FIELDS`) in place of "{fields}"."""
    return (inspect.getdoc(tool) or "").replace("{fields}", ", ".join([*FIELDS, "metadata.NAME"]))


class Tools:
    """Tools that a language model can call on an index. They raise `UserError` for calls that it should correct."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def search(
        self,
        text: str | None = None,
        like: str | None = None,
        without: str | None = None,
        only: str | None = None,
        where: str | None = None,
        after: str | None = None,
        before: str | None = None,
        path: str | None = None,
        below: str | None = None,
        top: int = 10,
    ) -> dict[str, Any]:
        """Search pictures, sounds, texts and videos of the index by content, best hits first.

        Give text, like, or both for a combined query. "match" is the confidence of a hit from 0 to 1, the share of
        unrelated queries whose best hit here scores lower: from 0.95 on it is likely right, below 0.7 weak, or "alike"
        if it seems to be more of the same. A "named" file has all words of the text in its name, caption or metadata;
        it comes first if they are "rare". "relevant" is false when no file is likely to be what is meant. "start" and
        "end" are seconds. "hints" say what may be wrong with the text, such as a misspelt word.

        Args:
            text: an English description of what is seen or heard, e.g. "a dog barking in the snow"
            like: path of a file of the index, to find similar files
            without: a text to move away from
            only: return only files of this kind: image, audio, text, video, or another one of the index
            where: a condition on {fields}, e.g. duration < 5 or
                width >= 1000 and "dog" in caption or near(48.1, 11.6, 20*km)
            after: return only files from this date on, e.g. 2024, 2024-05 or 2024-05-01
            before: return only files from before this date
            path: return only files whose path matches, e.g. "holidays/**/*.jpg"
            below: return only files in the folder, table or shard at this path
            top: number of files, 1 to 100
        """
        if not (text or like):
            raise UserError("the query is empty; give text, like or both")
        if not 1 <= top <= TOP:
            raise UserError(f"top is {top}; give 1 to {TOP}")
        query = Query(
            text=self.short(text or "", "text") or (),
            like=self.item(like).path if like else (),
            without=self.short(without or "", "without") or (),
        )
        condition = self._condition(where=where, after=after, before=before, path=path)
        filters = {"only": only or (), "where": condition, "below": below or ()}
        results = self.service.search(query, top=top, **filters)
        files = [_file(hit) for hit in results]
        return {
            "relevant": results.relevant,
            "compared": results.compared,
            "hints": [*results.hints],
            "files": files,
        }

    def classify(self, paths: list[str], labels: list[str]) -> dict[str, Any]:
        """Classify files of the index by given labels; returns the five most probable labels with probabilities.

        Args:
            paths: paths of files of the index, as returned by search
            labels: labels to choose from, e.g. ["dog", "cat", "bird"]
        """
        items = self.items(paths)
        probabilities = self.service.classify(map(self.service.value, items), len(items), labels)
        files = []
        for item, by_label in zip(items, probabilities, strict=True):
            best = list(by_label.items())[:LABELS]
            files.append({**named(item), "labels": {label: round(share, 4) for label, share in best}})
        return {"files": files}

    def item(self, path: str) -> Item:
        """The file of the index at a path in the form of the results; UserError if there is none."""
        # Bytes of a name that are not valid text are shown as \xNN.
        raw = re.sub(r"\\x([89a-f][0-9a-f])", lambda escape: os.fsdecode(bytes.fromhex(escape[1])), path)
        try:
            return self.service.item(raw)
        except Refused as error:
            reason = f"{describe(path)}: no such file in the index; give a path as search shows it"
            raise UserError(reason) from error

    def _condition(self, **filters: str | None) -> Condition | None:
        """Short filters as one condition, see `short_forms`."""
        for name, value in filters.items():
            self._check_length(value or "", name, FILTER_CHARACTERS)
        return short_forms(**{name: value or None for name, value in filters.items()})

    def items(self, paths: list[str]) -> list[Item]:
        paths = list(dict.fromkeys(paths))
        limit = self.service.limits.parts
        if not 1 <= len(paths) <= limit:
            raise UserError(f"paths has {len(paths)} files; give 1 to {limit}")
        return [self.item(path) for path in paths]

    def short(self, text: str, name: str) -> str:
        self._check_length(text, name, self.service.limits.characters)
        return text

    def _check_length(self, text: str, name: str, most: int) -> None:
        if len(text) > most:
            raise UserError(f"{len(text)} characters are above the limit of {most}", where=name)


def shown(path: str) -> str:
    """A path for the model, with invalid bytes as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def named(item: Item) -> dict[str, Any]:
    return {"path": shown(item.path), "kind": item.kind}


def _file(hit: Hit) -> dict[str, Any]:
    """A hit as a dictionary without empty fields and with rounded numbers."""
    fields = {**hit.to_dict(), **named(hit.item), "copies": [shown(path) for path in hit.copies[:COPIES]]}
    caption = hit.item.caption
    if caption and len(caption) > CAPTION:
        fields["caption"] = f"{caption[:CAPTION]}…"
    file = {}
    for name, value in fields.items():
        if value is not False and value not in (None, [], {}, ""):
            file[name] = round(value, 3) if isinstance(value, float) else value
    return file


def _answering(tool: Callable[..., dict[str, Any]], thumbnails_of: Service | None) -> Callable[..., CallToolResult]:
    """Wrap a tool so that it returns its results and errors as MCP results.

    Args:
        thumbnails_of: service whose thumbnails are added to the hits; None = none.
    """

    @functools.wraps(tool)
    def answer(**arguments: Any) -> CallToolResult:
        try:
            output = tool(**arguments)
        except UserError as error:
            return _error(one_line(error))
        except Exception as error:  # a bug, or a disk error: the server keeps running
            logger.exception("%s failed", tool.__name__)
            reason = f"{type(error).__name__}: {one_line(error)}"
            return _error(f"{tool.__name__} failed ({reason}); see the log of the server")
        text = without_surrogates(json.dumps(output, ensure_ascii=False))
        content: list[ContentBlock] = [TextContent(text=text)]
        if thumbnails_of is not None:
            content += _thumbnails(thumbnails_of, output["files"])
        return CallToolResult(content=content, structured_content=json.loads(text))

    answer.__annotations__ = {**tool.__annotations__, "return": CallToolResult}
    return answer


def _error(message: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(text=message)], is_error=True)


def _thumbnails(service: Service, files: list[dict[str, Any]]) -> list[ContentBlock]:
    """Path and thumbnail of the first files that have one."""
    tools = Tools(service)
    content: list[ContentBlock] = []
    visible = [file for file in files if file["kind"] in ("image", "video")]
    for file in visible[:THUMBNAILS]:
        path = file["path"]
        try:
            body = media.thumbnail(tools.item(path), service.roots, at=file.get("start", 0.0))
        except UserError:  # gone or changed since it was embedded
            continue
        if body.type == "image/webp":  # not the waveform of a video without pictures
            data = b64encode(body.read()).decode()
            content.append(TextContent(text=path))
            content.append(ImageContent(data=data, mime_type=body.type))
    return content
