"""A server with a generative model: its tools of MCP and its route, which give the model the bytes of a file."""

import os
import shutil
from types import SimpleNamespace

import anyio
import pytest

pytest.importorskip("mcp", reason="the tools need mcp")
pytest.importorskip("fastapi", reason="the route needs fastapi")

from fastapi.testclient import TestClient

from onepeace.errors import UserError
from onepeace.generative.serving import SharedGenerator, WritingTools
from onepeace.generative.tasks import Box, Text
from onepeace.index import Index, build
from onepeace.serve.app import create_app
from onepeace.serve.mcp import Tools, create_server
from onepeace.serve.service import Service


class StubGenerator:
    """A generator of pictures whose answers say what it was asked."""

    reader = SimpleNamespace(processors=lambda task: {"image": None})

    def task(self, name):
        return name

    def ask(self, task, items):
        (item,) = items
        size = len(item["image"])
        if task == "ground":
            return [Box((1.04, 2.0, size, len(item["text"])), 0.0, 0.51234)]
        text = f"a picture of {size} bytes" if task == "caption" else f"{size} {item['text']}"
        return [Text(text, 0.0, 0.51234)]


@pytest.fixture(scope="module")
def collection(tmp_path_factory, samples):
    """A folder of a picture and a sound."""
    folder = tmp_path_factory.mktemp("collection") / "files"
    folder.mkdir()
    shutil.copy(samples / "images" / "cat.jpg", folder)
    shutil.copy(samples / "sounds" / "sea.ogg", folder)
    return folder


@pytest.fixture(scope="module")
def index(collection, random_folder):
    folder = collection.parent / "index"
    build(folder, [collection], str(random_folder), device="cpu", progress=False)
    with Index.open(folder, device="cpu") as opened:
        yield opened


@pytest.fixture
def service(index, monkeypatch):
    monkeypatch.setattr("onepeace.generative.serving.load_generator", lambda name: StubGenerator())
    return Service(index, "stub")


@pytest.fixture
def tools(service):
    return WritingTools(Tools(service))


@pytest.fixture
def picture(collection):
    return collection / "cat.jpg"


@pytest.fixture
def sound(collection):
    return collection / "sea.ogg"


def test_tools_give_the_model_the_bytes_of_a_file(tools, picture, sound):
    size = os.path.getsize(picture)
    described, problem = tools.caption([str(picture), str(sound)])["files"]
    assert described["caption"] == f"a picture of {size} bytes"
    assert "audio" in problem["problem"]
    assert tools.answer(str(picture), "what?") == {"answer": f"{size} what?", "confidence": 0.512}
    assert tools.ground(str(picture), "a cat") == {"box": [1.0, 2.0, size, 5.0], "confidence": 0.512}
    with pytest.raises(UserError, match="does not support ground for audio"):
        tools.ground(str(sound), "a cat")


def test_server_offers_a_tool_for_each_task(service):
    tools = anyio.run(create_server(service).list_tools)
    assert [tool.name for tool in tools] == ["search", "classify", "caption", "answer", "ground"]


def test_route_captions_a_file_or_answers_a_question(service, index, picture):
    (item,) = [item for item in index.items() if item.kind == "image"]
    client = TestClient(create_app(service))
    size = os.path.getsize(picture)
    for question, text in (("", f"a picture of {size} bytes"), ("what?", f"{size} what?")):
        answer = client.post("/ask", json={"id": item.id, "question": question})
        assert answer.json() == {"text": text, "confidence": 0.512}


def test_tasks_are_those_that_the_model_can_do():
    assert SharedGenerator("tiny-captions").tasks == {"caption": ["image", "audio"]}
    with pytest.raises(UserError, match="tiny"):
        SharedGenerator("tiny")
