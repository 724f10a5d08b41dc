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

from onepeace.errors import UserError
from onepeace.generative.answers import Box, Text
from onepeace.serve.generator import SharedGenerator
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
CALLS = {
    "search": ("search", {"text": "a dog", "only": "image", "top": 3}),
    "like": ("search", {"like": "FILES/dog.ogg", "top": 2, "where": "", "path": None}),
    "classify": ("classify", {"paths": ["FILES/cat.jpg", "FILES/sea.ogg"], "labels": ["cat", "sea"]}),
    "half": ("search", {"text": "a \ud800 dog", "top": 1}),
    "nothing": ("search", {}),
    "top": ("search", {"text": "a", "top": 101}),
    "long": ("search", {"text": "a" * 20_001}),
    "without": ("search", {"text": "a", "without": "a" * 20_001}),
    "pattern": ("search", {"text": "a", "path": "*" * 1001}),
    "misspelt": ("search", {"text": "a", "tops": 3}),
    "words": ("classify", {"paths": ["FILES/cat.jpg"], "labels": [f"{i}" * 200 for i in range(100, 200)]}),
    "many": ("classify", {"paths": ["FILES/cat.jpg"], "labels": [f"{i}" for i in range(201)]}),
    "condition": ("search", {"text": "a", "where": "x"}),
    "kind": ("search", {"text": "a", "only": "foo"}),
    "outside": ("classify", {"paths": ["/etc/passwd"], "labels": ["cat"]}),
    "above": ("search", {"like": "../README.md"}),
    "unknown": ("delete", {"path": "cat.jpg"}),
    "caption": ("caption", {"paths": ["cat.jpg"]}),
}
WRONG = {
    "without": "without: 20001", "pattern": "path: 1001", "misspelt": "tops: no such argument", "words": "labels: ",
    "many": "labels: 201",
    "nothing": "text, like", "top": "top", "long": "text", "condition": "where", "kind": "only: ",
    "outside": "/etc/passwd", "above": "../README.md", "unknown": "delete", "caption": "caption",
}  # fmt: skip


def texts(result):
    return [content.text for content in result.content if content.type == "text"]


def in_process(service, *calls, **options):
    """Results of calls, of a server in this process."""

    async def ask():
        async with Client(create_server(service, **options)) as client:
            return [await client.call_tool(name, arguments) for name, arguments in calls]

    return anyio.run(ask)


@pytest.fixture(scope="module")
def session(index, index_folder, collection):
    """What a client hears in one session: the tools, and the result of each call. The index stays as it was."""
    heard = {}

    async def ask():
        async with Client(create_server(Service(index))) as client:
            heard["instructions"] = client.instructions
            heard["tools"] = (await client.list_tools()).tools
            for name, (tool, arguments) in CALLS.items():
                if name != "half":  # Python's client does not send it
                    written = json.dumps(arguments).replace("FILES", str(collection))
                    heard[name] = await client.call_tool(tool, json.loads(written))

    def state():
        contents = {}
        for path in index_folder.rglob("*"):
            if path.is_file() and not path.name.endswith(("-shm", "-wal")):
                contents[path] = path.read_bytes()
        return contents

    before = state()
    anyio.run(ask)
    assert state() == before
    return heard


def test_tools_are_listed_with_schemas_of_their_signatures(session):
    search, classify = session["tools"]
    assert (search.name, classify.name) == ("search", "classify")
    assert "index of 9 pictures, sounds" in session["instructions"]
    assert search.input_schema["properties"]["top"]["type"] == "integer"
    assert "required" not in search.input_schema
    assert classify.input_schema["required"] == ["paths", "labels"]
    assert "\n    only: return only files of this kind\n" in search.description
    assert all(tool.annotations.read_only_hint for tool in session["tools"])


def test_results_are_those_of_the_service(session, index, collection, model):
    result = session["search"]
    assert not result.is_error
    (text,) = texts(result)
    assert json.loads(text) == result.structured_content
    hits = index.search("a dog", only="image", top=3)
    files = result.structured_content["files"]
    assert [file["path"] for file in files] == [hit.item.path for hit in hits]
    assert files[0]["score"] == pytest.approx(hits[0].score, abs=6e-4)
    assert None not in files[0].values()
    similar = session["like"].structured_content["files"]
    assert str(collection / "dog.ogg") not in [file["path"] for file in similar]
    classified = session["classify"].structured_content["files"]
    (shares,) = model.classify([collection / "cat.jpg"], ["cat", "sea"]).tolist()
    assert classified[0]["labels"] == pytest.approx({"cat": shares[0], "sea": shares[1]}, abs=1e-4)
    assert [file["kind"] for file in classified] == ["image", "audio"]


@pytest.mark.parametrize("name", WRONG)
def test_wrong_call_is_a_tool_error_that_names_the_field(session, name):
    assert session[name].is_error
    (error,) = texts(session[name])
    assert WRONG[name] in error
    assert not error.startswith("--")  # a tool has no options
    assert "\n" not in error


def test_raw_lines_are_answered_and_nothing_but_the_protocol_comes_from_stdout(index_folder, collection):
    introduction = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    calls = [
        ("classify", {"paths": ["a"], "labels": ["b"]}),
        ("search", {"like": str(collection / "cat.jpg"), "only": "image", "top": 1}),
        CALLS["half"],
        ("search", {"like": "\ud800.jpg"}),
        ("search", {"text": 'a "\\ud800" dog', "top": 1}),
    ]
    messages = [
        {"id": 1, "method": "initialize", "params": introduction},
        {"method": "notifications/initialized"},
    ]
    for i, (name, arguments) in enumerate(calls, 2):
        call = {"name": name, "arguments": arguments}
        messages.append({"id": i, "method": "tools/call", "params": call})
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(index_folder), "noisy"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    answers = []
    for message in messages:
        process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        process.stdin.flush()
        if "id" in message:
            answers.append(json.loads(process.stdout.readline()))
    unread, log = process.communicate()
    assert (process.returncode, unread) == (0, ""), log
    assert [answer["id"] for answer in answers] == list(range(1, 7))
    assert answers[1]["result"]["structuredContent"] == {"files": []}
    assert [answer["result"]["isError"] for answer in answers[2:]] == [False, False, True, False]
    assert [word in log for word in ("noise of Python", "noise of C", "noise of a child")] == [True] * 3
    assert "Traceback" not in log


@pytest.mark.slow
def test_server_is_ready_before_torch_is_loaded(index_folder):
    code = "import sys; from onepeace.index import Index; from onepeace.serve import mcp, service\n"
    code += "mcp.create_server(service.Service(Index.open(sys.argv[1]))); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, str(index_folder)]).returncode == 0


def test_thumbnails_come_where_they_are_asked_for(index):
    (result,) = in_process(Service(index), ("search", {"text": "a dog", "top": 20}), thumbnails=True)
    pictures = [file["path"] for file in result.structured_content["files"] if file["kind"] == "image"]
    assert texts(result)[1:] == pictures
    images = [content for content in result.content if content.type == "image"]
    assert len(images) == 4
    with Image.open(io.BytesIO(base64.b64decode(images[0].data))) as image:
        assert image.format == "WEBP"
        assert max(image.size) <= 480


def test_fault_of_ours_and_bytes_that_are_no_text_do_not_end_the_server(index, collection, caplog, monkeypatch):
    service, name = Service(index), os.fsdecode(b"/no/\xff.jpg")

    def fail(*_, **__):
        raise ValueError(name)

    monkeypatch.setattr(service, "search", fail)
    calls = ("search", {"text": "a"}), ("classify", {"paths": [str(collection / "cat.jpg")], "labels": ["a"]})
    with caplog.at_level(logging.CRITICAL, "onepeace"):  # pytest's processes cannot send each other such a log
        wrong, right = in_process(service, *calls)
    assert wrong.is_error
    assert "/no/\N{REPLACEMENT CHARACTER}.jpg" in texts(wrong)[0]
    assert right.structured_content["files"][0]["labels"] == {"a": 1.0}


class Stub:
    """A generator of pictures whose answers say what it was asked."""

    reader = SimpleNamespace(processors=lambda task: {"image": None})

    def task(self, name):
        return name

    def caption(self, files):
        return [Text(f"a picture of {len(file['image'])} bytes", 0.0, 0.51234) for file in files]

    def answer(self, images, questions):
        return [
            Text(f"{len(image)} {question}", 0.0, 0.51234) for image, question in zip(images, questions, strict=True)
        ]

    def ground(self, images, phrases):
        return [
            Box((1.04, 2.0, len(image), len(phrase)), 0.0, 0.51234)
            for image, phrase in zip(images, phrases, strict=True)
        ]


def test_generator_is_given_the_bytes_of_files(index, collection, monkeypatch):
    monkeypatch.setattr("onepeace.generative.generator.load_generator", lambda name: Stub())
    picture, sound = (str(collection / name) for name in ("cat.jpg", "cat.ogg"))
    size = os.path.getsize(picture)
    caption, answer, ground, unheard = in_process(
        Service(index, SharedGenerator("stub")),
        ("caption", {"paths": [picture, sound]}),
        ("answer", {"path": picture, "question": "what?"}),
        ("ground", {"path": picture, "phrase": "a cat"}),
        ("ground", {"path": sound, "phrase": "a cat"}),
    )
    described, problem = caption.structured_content["files"]
    assert described["caption"] == f"a picture of {size} bytes"
    assert "audio" in problem["problem"]
    assert answer.structured_content == {"answer": f"{size} what?", "confidence": 0.512}
    assert ground.structured_content == {"box": [1.0, 2.0, size, 5.0], "confidence": 0.512}
    assert unheard.is_error


def test_tasks_are_those_that_the_model_can_do():
    assert SharedGenerator("tiny-captions").tasks == {"caption": ["image", "audio"]}
    with pytest.raises(UserError, match="tiny"):
        SharedGenerator("tiny")
