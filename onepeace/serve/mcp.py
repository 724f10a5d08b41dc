"""An MCP server of the tools of an index, for the programs in which people talk to language models (package mcp).

It lists the tools with the schemas that the SDK makes of their signatures, and runs one call at a time: the model and
the index serve one thread. What is wrong with a call comes back as the tool's result, one line for the model to read.
"""

import inspect
import json
import logging
from base64 import b64encode
from typing import Any

import anyio
from mcp.server.lowlevel import Server
from mcp.server.mcpserver.tools import Tool
from mcp.server.stdio import stdio_server
from mcp_types import CallToolResult, ContentBlock, ImageContent, ListToolsResult, TextContent, ToolAnnotations
from mcp_types import Tool as ListedTool

from onepeace import __version__
from onepeace.errors import UserError, one_line
from onepeace.index.sources import without_surrogates
from onepeace.serve.tools import IndexTools

logger = logging.getLogger(__name__)

READ_ONLY = ToolAnnotations(read_only_hint=True, open_world_hint=False)
THUMBNAILS = 10
"""Pictures that come with the files of one search."""
ABOUT = """\
An index of {count} pictures, sounds, texts and videos on the user's computer, searched by meaning. Files are named by \
their paths, as search gives them; no other file can be read."""


def create_server(tools: IndexTools, *, thumbnails: bool = False) -> Server[Any]:
    """The server, for any transport.

    Args:
        thumbnails: small copies of the pictures, and of what videos show, come with the files that are found.
    """
    offered = [
        Tool.from_function(function, description=inspect.getdoc(function)) for function in tools.functions.values()
    ]
    listed = [
        ListedTool(
            name=tool.name,
            description=tool.description,
            input_schema=tool.parameters,
            output_schema=tool.output_schema,
            annotations=READ_ONLY,
        )
        for tool in offered
    ]
    alone = anyio.Lock()

    async def list_tools(*_: Any) -> ListToolsResult:
        return ListToolsResult(tools=listed)

    async def call_tool(_: Any, asked: Any) -> CallToolResult:
        async with alone:
            return await anyio.to_thread.run_sync(_result, tools, asked.name, asked.arguments or {}, thumbnails)

    return Server(
        "onepeace",
        version=__version__,
        instructions=ABOUT.format(count=len(tools.index)),
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


def serve_stdio(server: Server[Any]) -> None:
    """Answer the client at stdin and stdout until it closes them. Whatever else is printed goes to stderr meanwhile."""

    async def serve() -> None:
        async with stdio_server() as (read, write):
            await server.run(read, write, server.create_initialization_options())

    anyio.run(serve)


def _result(tools: IndexTools, name: str, arguments: dict[str, Any], thumbnails: bool) -> CallToolResult:
    try:
        found = tools.call(name, arguments)
    except UserError as error:
        return _error(one_line(error))
    except Exception as error:  # a fault of ours, or of the disk: the server goes on
        logger.exception("%s failed", name)
        reason = f"{type(error).__name__}: {one_line(error)}"
        return _error(f"{name} failed ({reason}); the user can see more in the server's log")
    text = without_surrogates(json.dumps(found, ensure_ascii=False))
    content: list[ContentBlock] = [TextContent(text=text)]
    if thumbnails and name == "search":
        content += _thumbnails(tools, found["files"])
    return CallToolResult(content=content, structured_content=json.loads(text))


def _error(said: str) -> CallToolResult:
    # A path may hold bytes that are no text, and what cannot be sent ends the server.
    return CallToolResult(content=[TextContent(text=without_surrogates(said))], is_error=True)


def _thumbnails(tools: IndexTools, files: list[dict[str, Any]]) -> list[ContentBlock]:
    """The path and a small picture of each of the first files that have one."""
    from onepeace.serve.media import thumbnail

    content: list[ContentBlock] = []
    for file in [file for file in files if file["modality"] in ("image", "video")][:THUMBNAILS]:
        try:
            body = thumbnail(tools.item(file["path"]), file.get("start", 0.0))
        except UserError:  # gone or changed since it was embedded
            continue
        if body.type == "image/webp":  # not the waveform of a video without pictures
            data = b64encode(b"".join(body.chunks(0, body.size))).decode()
            content += [TextContent(text=file["path"]), ImageContent(data=data, mime_type=body.type)]
    return content
