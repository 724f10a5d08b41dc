"""The MCP server of an index, by the SDK's own client in this process, and by lines to one of its own."""

import base64
import io
import json
import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import anyio
import pytest
from PIL import Image

pytest.importorskip("mcp", reason="the server needs mcp")

from mcp import Client

from onepeace.serve.mcp import create_server
from onepeace.serve.service import Service

RUN = """
import os, sys
from onepeace.index import Index
from onepeace.serve import mcp
def classify(self, paths: list[str], labels: list[str]):
    "Makes noise."
    print("noise of Python")
    os.write(1, b"noise of C\\n")
    os.system("echo noise of a child")
    return {"files": []}
if "noisy" in sys.argv: mcp.Tools.classify = classify
with Index.open(sys.argv[1], device="cpu") as index:
    mcp.run(index)
"""


def texts(result):
    return [content.text for content in result.content if content.type == "text"]


def call_all(service, *calls, **options):
    """Results of calls (tool, arguments), of a server in this process."""

    async def ask():
        async with Client(create_server(service, **options)) as client:
            return [await client.call_tool(tool, arguments) for tool, arguments in calls]

    return anyio.run(ask)


@pytest.fixture
def call(index):
    """Calls a tool of a server of the index."""

    def run(tool, **arguments):
        (result,) = call_all(Service(index), (tool, arguments))
        return result

    return run


@pytest.fixture
def paths(collection):
    """Paths of a picture and of a sound."""
    return SimpleNamespace(picture=str(collection / "cat.jpg"), sound=str(collection / "sea.ogg"))


def test_tools_have_schemas_of_their_signatures(index):
    async def describe():
        async with Client(create_server(Service(index))) as client:
            return client.instructions, (await client.list_tools()).tools

    instructions, (search, classify) = anyio.run(describe)

    assert "index of 9 pictures, sounds" in instructions
    assert (search.name, classify.name) == ("search", "classify")
    assert search.input_schema["properties"]["top"]["type"] == "integer"
    assert "required" not in search.input_schema
    assert classify.input_schema["required"] == ["paths", "labels"]
    assert "\n    only: return only files of this kind: image" in search.description
    assert search.annotations.read_only_hint
    assert classify.annotations.read_only_hint


def test_search_by_words(call, index):
    hits = index.search("a dog", only="image", top=3)

    result = call("search", text="a dog", only="image", top=3)

    assert not result.is_error
    (text,) = texts(result)
    files = result.structured_content["files"]
    assert json.loads(text) == result.structured_content
    assert [file["path"] for file in files] == [hit.item.path for hit in hits]
    assert files[0]["score"] == pytest.approx(hits[0].score, abs=6e-4)
    assert None not in files[0].values()


@pytest.mark.parametrize(
    ("tool", "arguments", "field"),
    [
        ("search", {}, "text, like"),
        ("search", {"text": "a", "path": "*" * 1001}, "path: 1001"),
        ("search", {"text": "a", "tops": 3}, "tops: no such argument"),
        ("search", {"like": "../README.md"}, "../README.md"),
        ("classify", {"labels": [f"{number}" for number in range(201)]}, "labels: 201"),
        ("classify", {"paths": ["/etc/passwd"], "labels": ["cat"]}, "/etc/passwd"),
    ],
)
def test_wrong_call_is_a_tool_error_that_names_the_field(call, paths, tool, arguments, field):
    if tool == "classify":
        arguments = {"paths": [paths.picture], **arguments}

    result = call(tool, **arguments)

    assert result.is_error
    (error,) = texts(result)
    assert field in error
    assert not error.startswith("--")  # a tool has no options
    assert "\n" not in error


def test_thumbnails_come_where_they_are_asked_for(index):
    (result,) = call_all(Service(index), ("search", {"text": "a dog", "top": 20}), thumbnails=True)

    pictures = [file["path"] for file in result.structured_content["files"] if file["kind"] == "image"]
    images = [content for content in result.content if content.type == "image"]
    assert texts(result)[1:] == pictures
    assert len(images) == len(pictures) == 4
    with Image.open(io.BytesIO(base64.b64decode(images[0].data))) as image:
        assert image.format == "WEBP"
        assert max(image.size) <= 480


def test_fault_of_ours_does_not_end_the_server(index, paths, caplog, monkeypatch):
    service = Service(index)

    def fail(*_, **__):
        raise ValueError(os.fsdecode(b"/no/\xff.jpg"))

    monkeypatch.setattr(service, "search", fail)
    with caplog.at_level(logging.CRITICAL, "onepeace"):  # pytest's processes cannot send each other such a log
        failed, classified = call_all(
            service, ("search", {"text": "a"}), ("classify", {"paths": [paths.picture], "labels": ["a", "b"]})
        )

    assert failed.is_error
    assert r"/no/\udcff.jpg" in texts(failed)[0]
    assert set(classified.structured_content["files"][0]["labels"]) == {"a", "b"}


def results_and_log(index_folder, *requests):
    """What a server in a process of its own answers, which must end well, and its log."""
    command = [sys.executable, "-c", RUN, str(index_folder), "noisy"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    results = []
    for number, (method, params) in enumerate(requests):
        request = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        print(json.dumps(request), file=process.stdin, flush=True)
        answer = json.loads(process.stdout.readline())
        assert answer["id"] == number
        results.append(answer["result"])
    unread, log = process.communicate()
    assert (process.returncode, unread) == (0, ""), log
    return results, log


def test_lines_are_answered_and_nothing_but_the_protocol_comes_from_stdout(index_folder, paths):
    client = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    noisy = {"name": "classify", "arguments": {"paths": ["a"], "labels": ["b"]}}
    like_a_picture = {"name": "search", "arguments": {"like": paths.picture, "only": "image", "top": 1}}
    half_a_character = {"name": "search", "arguments": {"text": "a \ud83d dog \ud83d\ude00", "top": 1}}

    (_, classified, found, found_by_half), log = results_and_log(
        index_folder,
        ("initialize", client),
        ("tools/call", noisy),
        ("tools/call", like_a_picture),
        ("tools/call", half_a_character),
    )

    assert classified["structuredContent"] == {"files": []}
    assert not found["isError"]
    assert not found_by_half["isError"]
    for noise in ("noise of Python", "noise of C", "noise of a child"):
        assert noise in log
    assert "Traceback" not in log
