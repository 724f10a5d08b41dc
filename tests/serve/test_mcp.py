"""`onepeace mcp`, by the SDK's own client: over a real process, and in this one."""

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

from mcp import Client, StdioServerParameters
from support.generative import save_small_ofa
from support.indexes import fabricate
from support.said import Stub

from onepeace.cli import main
from onepeace.index.index import Index
from onepeace.index.store import Item
from onepeace.index.write import build
from onepeace.serve.generator import takes
from onepeace.serve.mcp import _result, create_server
from onepeace.serve.tools import TAKES, IndexTools

CALLS = {
    "search": ("search", {"text": "a dog", "only": "image", "top": 3}),
    "like": ("search", {"like": "sounds/dog.ogg", "top": 2}),
    "classify": ("classify", {"paths": ["cat.jpg", "sounds/sea.ogg"], "labels": ["cat", "sea"]}),
    "type": ("search", {"text": "a dog", "top": "three"}),
    "missing": ("classify", {"labels": ["cat"]}),
    "nothing": ("search", {}),
    "outside": ("classify", {"paths": ["/etc/passwd"], "labels": ["cat"]}),
    "above": ("search", {"like": "../README.md"}),
    "unknown": ("delete", {"path": "cat.jpg"}),
    "generator": ("caption", {"paths": ["cat.jpg"]}),
}


def texts(result):
    return [content.text for content in result.content if content.type == "text"]


def state(folder):
    """All files below a folder, but for what SQLite shares with writers."""
    found = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {path: data for path, data in found.items() if not path.name.endswith(("-shm", "-wal"))}


@pytest.fixture(scope="module")
def samples_index(tmp_path_factory, samples, random_folder):
    folder = tmp_path_factory.mktemp("mcp") / "samples.index"
    build(folder, [str(samples)], str(random_folder), device="cpu", progress=False)
    return folder


@pytest.fixture(scope="module")
def session(samples_index, samples):
    """What a client hears in one session: the tools, and the result of each call."""
    heard = {}
    parameters = StdioServerParameters(
        command=sys.executable,
        args=["-m", "onepeace", "mcp", str(samples_index), "--device", "cpu"],
        env=dict(os.environ),
        cwd=samples.parent.parent,
    )

    async def ask():
        async with Client(parameters) as client:
            heard["instructions"] = client.instructions
            heard["tools"] = (await client.list_tools()).tools
            for name, (tool, arguments) in CALLS.items():
                heard[name] = await client.call_tool(tool, arguments)

    before = state(samples_index)
    anyio.run(ask)
    assert state(samples_index) == before
    return heard


def test_tools_are_listed_with_schemas_of_their_signatures(session):
    search, classify = session["tools"]
    assert (search.name, classify.name) == ("search", "classify")
    assert "An index of 37 pictures, sounds" in session["instructions"]
    assert search.input_schema["properties"]["top"] == {"default": 10, "title": "Top", "type": "integer"}
    assert "required" not in search.input_schema
    assert classify.input_schema["required"] == ["paths", "labels"]
    assert search.description.startswith("Find pictures, sounds, texts and videos")
    assert "\n    only: find files of this kind only\n" in search.description
    assert search.output_schema["required"] == ["relevant", "compared", "files"]
    assert classify.output_schema["$defs"]["ClassifiedFile"]["required"] == ["path", "modality", "labels"]
    assert all(tool.annotations.read_only_hint for tool in session["tools"])


def test_results_are_those_of_the_functions(session, samples_index, samples, monkeypatch):
    monkeypatch.chdir(samples.parent.parent)
    with Index.open(samples_index, device="cpu") as index:
        tools = IndexTools(index)
        for name in ("search", "like", "classify"):
            result, (tool, arguments) = session[name], CALLS[name]
            assert not result.is_error
            (text,) = texts(result)
            assert json.loads(text) == result.structured_content == tools.call(tool, arguments)
            assert len(result.content) == 1
    files = session["search"].structured_content["files"]
    assert [file["modality"] for file in files] == ["image"] * 3
    assert all(file["path"].startswith("data/samples/images/") for file in files)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("type", "search: top is 'three'; it must be int"),
        ("missing", "classify: missing a required argument: 'paths'; it takes paths, labels"),
        ("nothing", "nothing to search for; give text, like or both"),
        ("outside", "/etc/passwd: no such file in the index; give a path as search shows it"),
        ("above", "../README.md: no such file in the index; give a path as search shows it"),
        ("unknown", "no tool 'delete'; there are search, classify"),
        ("generator", "no tool 'caption'; there are search, classify"),
    ],
)
def test_wrong_call_is_a_tool_error_of_one_line(session, name, said):
    assert session[name].is_error
    assert texts(session[name]) == [said]


NOISY = """
import os, sys, onepeace.cli
from onepeace.serve.tools import IndexTools
def classify(self, paths: list[str], labels: list[str]):
    "Makes noise."
    print("noise of Python")
    os.write(1, b"noise of C\\n")
    os.system("echo noise of a child")
    return {"files": []}
IndexTools.classify = classify
code = onepeace.cli.main(["mcp", *sys.argv[1:], "--debug"])
print("LOADED", *{name.partition(".")[0] for name in sys.modules}, file=sys.stderr)
sys.exit(code)
"""


def test_nothing_but_the_protocol_comes_from_stdout_and_no_torch_before_it_is_needed(samples_index):
    about = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    asked = [
        {"id": 1, "method": "initialize", "params": about},
        {"method": "notifications/initialized"},
        {"id": 2, "method": "tools/list"},
        {
            "id": 3,
            "method": "tools/call",
            "params": {"name": "classify", "arguments": {"paths": ["a"], "labels": ["b"]}},
        },
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", NOISY, str(samples_index)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    lines = []
    for message in asked:
        process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        process.stdin.flush()
        if "id" in message:
            lines.append(process.stdout.readline())
    rest, log = process.communicate()
    assert (process.returncode, rest) == (0, ""), log
    answers = [json.loads(line) for line in lines]
    assert [answer["id"] for answer in answers] == [1, 2, 3]
    assert answers[2]["result"]["structuredContent"] == {"files": []}
    assert [word in log for word in ("noise of Python", "noise of C", "noise of a child")] == [True] * 3
    assert "Traceback" not in log
    loaded = log.rpartition("LOADED")[2].split()
    assert "onepeace" in loaded
    assert not {"torch", "transformers", "PIL", "fastapi", "gradio"} & {*loaded}


def in_process(tools, *calls, **options):
    """Results of calls, of a server in this process."""

    async def ask():
        async with Client(create_server(tools, **options)) as client:
            return [await client.call_tool(name, arguments) for name, arguments in calls]

    return anyio.run(ask)


def test_thumbnails_come_with_pictures_where_they_are_asked_for(index_folder):
    with Index.open(index_folder, device="cpu") as index:
        tools = IndexTools(index)
        (result,) = in_process(tools, ("search", {"text": "a dog", "top": 20}), thumbnails=True)
        pictures = [file["path"] for file in result.structured_content["files"] if file["modality"] == "image"]
        assert len(pictures) == 4
        assert texts(result)[1:] == pictures
        images = [content for content in result.content if content.type == "image"]
        assert len(images) == 4
        for content in images:
            assert content.mime_type == "image/webp"
            with Image.open(io.BytesIO(base64.b64decode(content.data))) as image:
                assert image.format == "WEBP"
                assert 100 < max(image.size) <= 480


def test_thumbnail_of_what_is_gone_is_left_out(tmp_path):
    folder = fabricate(tmp_path / "i", [(Item(f"/no/{i}.jpg", "image"), (1.0, i)) for i in range(3)])
    with Index.open(folder) as index:
        (result,) = in_process(IndexTools(index), ("search", {"like": "0.jpg"}), thumbnails=True)
        assert not result.is_error
        assert len(result.structured_content["files"]) == 2
        assert len(result.content) == 1


def test_fault_of_ours_does_not_end_the_server(index_folder, caplog):
    with Index.open(index_folder, device="cpu") as index:
        tools = IndexTools(index)
        index.search = lambda *_, **__: 1 / 0
        wrong, right = in_process(
            tools, ("search", {"text": "a"}), ("classify", {"paths": ["cat.jpg"], "labels": ["a"]})
        )
    said = "search failed (ZeroDivisionError: division by zero); the user can see more in the server's log"
    assert (wrong.is_error, texts(wrong)) == (True, [said])
    assert "Traceback" in caplog.text
    assert right.structured_content["files"][0]["labels"] == {"a": 1.0}


def test_bytes_of_a_name_that_are_no_text_do_not_end_the_server(tmp_path, caplog):
    path = os.fsdecode(b"/no/\xff.jpg")
    caplog.set_level(logging.CRITICAL, "onepeace.serve.mcp")  # what pytest has captured must be text, too

    def fail(*_):
        raise ValueError(path)

    with Index.open(fabricate(tmp_path / "i", [(Item(path, "image"), (1.0, 0.0))])) as index:
        tools = IndexTools(index, Stub())
        results = [
            _result(tools, "answer", {"path": r"\xff.jpg", "question": "what?"}, False),
            _result(SimpleNamespace(call=fail), "search", {}, False),
            _result(tools, "caption", {"paths": [r"\xff.jpg"]}, False),
        ]
    for result in results:
        assert "/no/\N{REPLACEMENT CHARACTER}.jpg" in result.model_dump_json()
    assert [result.is_error for result in results] == [True, True, False]


def test_calls_come_one_at_a_time(index_folder):
    running, most = 0, 0

    class Counting(IndexTools):
        def call(self, name, arguments):
            nonlocal running, most
            running += 1
            most = max(most, running)
            anyio.from_thread.run(anyio.sleep, 0.01)
            running -= 1
            return super().call(name, arguments)

    async def ask(tools):
        async with Client(create_server(tools)) as client, anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(client.call_tool, "search", {"like": "cat.jpg"})

    with Index.open(index_folder, device="cpu") as index:
        anyio.run(ask, Counting(index))
    assert most == 1


def test_options_of_the_command_reach_the_server(index_folder, collection, monkeypatch, tmp_path):
    asked = {
        "caption": {"paths": ["cat.jpg"]}, "answer": {"path": "cat.jpg", "question": "what?"},
        "ground": {"path": "cat.jpg", "phrase": "a cat"}, "search": {"text": "a", "only": "image", "top": 1},
    }  # fmt: skip
    heard, loaded = {}, []

    def serve(server):
        async def ask():
            async with Client(server) as client:
                heard["tools"] = [tool.name for tool in (await client.list_tools()).tools]
                assert not loaded
                for name, arguments in asked.items():
                    heard[name] = await client.call_tool(name, arguments)

        anyio.run(ask)

    def load_generator(name, **options):
        loaded.append((name, options))
        return Stub()

    generator = str(save_small_ofa(tmp_path / "ofa"))
    monkeypatch.setattr("onepeace.generative.generator.load_generator", load_generator)
    monkeypatch.setattr("onepeace.serve.mcp.serve_stdio", serve)
    assert main(["mcp", str(index_folder), "--generator", generator, "--thumbnails", "--device", "cpu"]) == 0
    assert loaded == [(generator, {"device": "cpu", "dtype": "auto"})]
    assert heard["tools"] == ["search", "classify", "caption", "answer", "ground"]
    size = os.path.getsize(collection / "cat.jpg")
    assert heard["caption"].structured_content["files"][0]["caption"] == f"a picture of {size} bytes"
    assert heard["answer"].structured_content == {"answer": f"{size} what?", "confidence": 0.512}
    assert heard["ground"].structured_content == {"box": [1.0, 2.0, size, 5.0], "confidence": 0.512}
    assert [content.type for content in heard["search"].content] == ["text", "text", "image"]


def test_no_index_is_said_in_one_line(tmp_path, capsys):
    assert main(["mcp", str(tmp_path / "none")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "no index there; make one with: onepeace index build FILES" in err
    assert err.count("\n") == 1


def test_tools_are_those_that_the_generator_can_do(tmp_path):
    assert takes("tiny-captions") == {"caption": ["image", "audio"]}
    folder = save_small_ofa(tmp_path / "ofa")
    (folder / "tasks.yaml").write_text("caption: {image: null}\nground: null\n", encoding="utf-8")
    assert takes(str(folder)) == {"answer": ["image"]}
    for to_be_fetched in ("ofa-base-vqa", "owner/name"):
        assert takes(to_be_fetched) == TAKES


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tiny-caption", "no model 'tiny-caption'; did you mean tiny-captions"),
        ("/no/model", "/no/model: no such folder"),
        ("tiny", "tiny: writes nothing; name a model that does, as tiny-captions"),
        ("one-peace", "one-peace: writes nothing; name a model that does, as tiny-captions"),
    ],
)
def test_wrong_generator_is_refused_at_the_start(index_folder, capsys, name, said):
    assert main(["mcp", str(index_folder), "--generator", name]) == 1
    assert said in capsys.readouterr().err
