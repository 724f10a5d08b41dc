"""The tools of an index as plain functions, and the two loops of tests/serve/chat.py that let a model call them."""

import importlib
import json
import os
import re
import shutil
import sys
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from support.generative import small_generator
from support.indexes import fabricate
from support.said import Stub
from support.server import serving
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor, PreTrainedTokenizerFast
from transformers.utils import get_json_schema

from onepeace.embed.zero_shot import TEMPLATE
from onepeace.errors import UserError
from onepeace.generative.generator import load_generator
from onepeace.index.index import Index
from onepeace.index.query import Part
from onepeace.index.store import Item
from onepeace.index.write import build
from onepeace.processors.tokenizer import train_bpe
from onepeace.serve.limits import Limits
from onepeace.serve.tools import IndexTools

spec = importlib.util.spec_from_file_location("chat", os.path.join(os.path.dirname(__file__), "chat.py"))
chat = importlib.util.module_from_spec(spec)
spec.loader.exec_module(chat)


@pytest.fixture(scope="module")
def tools(index_folder):
    with Index.open(index_folder, device="cpu") as index:
        yield IndexTools(index, Stub())


@pytest.fixture(autouse=True)
def _here(collection, monkeypatch):
    monkeypatch.chdir(collection.parent)


def names(found):
    return [file["path"] for file in found["files"]]


def test_search_gives_the_hits_of_the_index(tools):
    found = tools.search(text="a dog", like="files/cat.jpg", only="audio", top=3)
    parts = [Part("text", "a dog"), Part("like", "files/cat.jpg")]
    hits = tools.index.search(parts, only=("audio",), top=3).hits
    assert names(found) == [os.path.relpath(hit.item.path) for hit in hits]
    assert (len(found["files"]), found["compared"], found["relevant"]) == (3, 4, None)
    first = found["files"][0]
    assert first["score"] == pytest.approx(hits[0].score, abs=6e-4)
    assert (first["modality"], first["duration"]) == ("audio", round(hits[0].item.duration, 2))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", first["date"])
    assert "width" not in first
    json.dumps(found, allow_nan=False)


def test_search_filters(tools):
    assert names(tools.search(text="x", path_glob="*/note.txt")) == []
    assert names(tools.search(text="x", path_glob="note.txt")) == ["files/note.txt"]
    assert tools.search(text="x", where="width > 1 and modality = 'image'")["compared"] == 4
    assert tools.search(text="x", before="1971") == {"relevant": None, "compared": 0, "files": []}
    assert tools.search(text="x", after="1971")["compared"] == 9
    assert "files/cat.jpg" not in names(tools.search(like="files/cat.jpg"))


def test_what_is_known_of_a_hit_is_said(index_folder):
    about = {"duration": 9.0, "caption": "ball", "date": -1e20}  # of a year that no calendar has
    hit = SimpleNamespace(
        item=Item("/v/a.mp4", "video", **about),
        **{"modality": "audio", "match": 0.61234, "score": 0.5, "start": 1.234, "end": 2.0, "copies": ("/v/d.mp4",)},
    )
    asked = []

    def search(parts, **options):
        asked.append(options)
        return SimpleNamespace(relevant=True, compared=1, hits=[hit])

    with Index.open(index_folder) as index:
        index.search = search
        found = IndexTools(index).search(text="x")
    assert found == {"relevant": True, "compared": 1, "files": [{
        "path": "/v/a.mp4", "modality": "video", "match": 0.612, "score": 0.5, "start": 1.23, "end": 2.0,
        "found_by": "audio", "caption": "ball", "duration": 9.0, "copies": ["/v/d.mp4"],
    }]}  # fmt: skip
    assert asked[0]["min_match"] == 0.5


def test_many_copies_and_long_captions_are_cut(tmp_path):
    files = [(Item(f"/p/{i:04}.jpg", "image", caption="word " * 80), (1.0, i * 1e-6)) for i in range(1500)]
    with Index.open(fabricate(tmp_path / "i", [*files, (Item("/q.jpg", "image"), (0.5, 1.0))])) as index:
        (found,) = IndexTools(index).search(like="/q.jpg", top=2)["files"]
    assert (len(found["copies"]), found["more_copies"]) == (5, 1494)
    assert found["caption"] == ("word " * 60) + "…"


def test_classify_is_zero_shot_classification_of_the_vectors_in_the_index(tools, model):
    labels = ["dog", "cat", "sea", "rain", "a horse", "night"]
    found = tools.classify(["files/dog.jpg", "files/sea.ogg", "files/note.txt"], [*labels, " dog ", ""])
    for file, modality in zip(found["files"], ("image", "audio", "text"), strict=True):
        vector = tools.index.store.vectors(tools.item(file["path"]).id).mean(0)
        vector = torch.from_numpy(vector / np.linalg.norm(vector))
        classes = model.encode_text([TEMPLATE[modality].format(label) for label in labels])
        shares = (model.logit_scale * classes @ vector).softmax(0)
        best = [labels[i] for i in shares.argsort(descending=True)[:5]]
        assert (file["modality"], list(file["labels"])) == (modality, best)
        np.testing.assert_allclose(list(file["labels"].values()), sorted(shares.tolist())[:0:-1], atol=2e-4)


def test_generator_gets_the_bytes_of_pictures(tools, collection):
    size = os.path.getsize(collection / "cat.jpg")
    captions = tools.caption(["files/cat.jpg", "files/dog.jpg", "files/cat.jpg"])["files"]
    assert captions[0]["caption"] == f"a picture of {size} bytes"
    assert [file["path"] for file in captions] == ["files/cat.jpg", "files/dog.jpg"]
    assert tools.answer("files/cat.jpg", "what?") == {"answer": f"{size} what?", "confidence": 0.512}
    assert tools.ground("files/cat.jpg", "a cat") == {"box": [1.0, 2.0, size, 5], "confidence": 0.512}
    with pytest.raises(UserError, match=r"cat\.ogg: is of the kind audio; give a picture"):
        tools.ground("files/cat.ogg", "a cat")


def test_generator_that_chooses_answers_too(tools):
    generator = small_generator()
    generator.tasks["answer"] = replace(generator.tasks["answer"], answer="choice", choices=["a red bus"])
    assert IndexTools(tools.index, generator).answer("cat.jpg", "what?") == {"answer": "a red bus", "confidence": 1.0}


def test_files_without_a_caption_have_a_reason_beside_those_with_one(tmp_path, collection, monkeypatch):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "gone.jpg").touch()
    paths = [collection / name for name in ("cat.jpg", "note.txt", "sea.ogg", "rain.ogg")]
    paths += [tmp_path / "broken.jpg", tmp_path / "gone.jpg"]
    kinds = {".jpg": "image", ".ogg": "audio", ".txt": "text"}
    items = [Item(str(path), kinds[path.suffix], path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    (tmp_path / "gone.jpg").unlink()
    largest = items[2].size
    assert largest < items[3].size
    monkeypatch.setattr("onepeace.serve.tools.LIMITS", Limits(upload=largest))
    with Index.open(fabricate(tmp_path / "i", [(item, (1.0, 0.0)) for item in items])) as index:
        generator = load_generator("tiny-captions", device="cpu")
        tools = IndexTools(index, generator, {"caption": ["image", "audio"]})
        cat, note, sea, rain, broken, gone = tools.caption([str(path) for path in reversed(paths)])["files"][::-1]
    assert "cat" in cat["caption"]
    assert 0 < sea["confidence"] < 1
    assert note["problem"].endswith("note.txt: is of the kind text; give a picture or sound")
    assert rain["problem"].endswith(f"rain.ogg: has {items[3].size:,} bytes; give a file of at most {largest:,}")
    assert "no such file now" in gone["problem"]
    assert broken.keys() == {"path", "modality", "problem"}


def test_tools_that_need_a_generator_are_offered_with_one_only(tools):
    assert list(tools.functions) == ["search", "classify", "caption", "answer", "ground"]
    without = IndexTools(tools.index)
    assert list(without.functions) == ["search", "classify"]
    with pytest.raises(UserError, match="no tool 'caption'; there are search, classify"):
        without.call("caption", {"paths": ["files/cat.jpg"]})
    assert list(IndexTools(tools.index, Stub(), {"caption": ["audio"]}).functions) == ["search", "classify", "caption"]


# Paths


def test_a_path_is_a_file_of_the_index_or_its_end(tools, collection):
    cat = str(collection / "cat.jpg")
    for path in (cat, "files/cat.jpg", "./files/../files/cat.jpg", "cat.jpg"):
        assert tools.item(path).path == cat
    with pytest.raises(UserError, match=re.escape("at.jpg: no such file in the index; give a path as search shows it")):
        tools.item("at.jpg")


def test_end_of_several_paths_is_not_enough(tmp_path):
    paths = ["/p/a/cat.jpg", "/p/b/cat.jpg", "/p/s.tar::k.jpg"]
    folder = fabricate(tmp_path / "i", [(Item(path, "image"), (1.0, i)) for i, path in enumerate(paths)])
    with Index.open(folder) as index:
        tools = IndexTools(index)
        assert tools.item("b/cat.jpg").path == paths[1]
        assert tools.item("k.jpg").path == paths[2]
        with pytest.raises(UserError, match=r"^cat\.jpg: could be /p/a/cat\.jpg, /p/b/cat\.jpg; give the whole path$"):
            tools.item("cat.jpg")


def test_names_that_are_no_text_come_back_as_they_were_shown(tmp_path):
    raw = os.fsdecode(b"/p/caf\xe9.jpg")
    folder = fabricate(tmp_path / "i", [(Item(raw, "image"), (1.0, 0)), (Item(r"/p/\xe9.jpg", "image"), (1.0, 1))])
    with Index.open(folder) as index:
        tools = IndexTools(index)
        shown = tools.search(like=r"/p/\xe9.jpg")["files"][0]["path"]
        assert shown.encode() == rb"/p/caf\xe9.jpg"
        assert [tools.item(path).path for path in (shown, r"caf\xe9.jpg", r"/p/\xe9.jpg")] == [raw, raw, r"/p/\xe9.jpg"]


OPENED = []
WATCHED = [False]
sys.addaudithook(lambda event, args: OPENED.append(str(args[0])) if WATCHED[0] and event == "open" else None)


@pytest.fixture
def opened():
    """Paths that were opened since."""
    OPENED.clear()
    WATCHED[0] = True
    yield OPENED
    WATCHED[0] = False


def test_no_file_outside_the_index_is_opened(tools, collection, opened):
    secret = collection.parent / "secret.jpg"
    Image.new("RGB", (20, 20)).save(secret)
    (collection / "link.jpg").symlink_to(secret)  # made after the index
    OPENED.clear()
    outside = ["/etc/passwd", str(secret), "secret.jpg", "files/../secret.jpg", "../secret.jpg", "files/link.jpg"]
    outside += [str(collection / "link.jpg"), f"file://{secret}", "files", "", ".", "..", "a\0b", "\ud800", "~/.ssh/x"]
    try:
        for path in outside:
            calls = [("search", {"like": path}), ("classify", {"paths": [path], "labels": ["a"]})]
            calls += [("caption", {"paths": ["files/cat.jpg", path]}), ("answer", {"path": path, "question": "what?"})]
            for name, arguments in calls:
                with pytest.raises(UserError) as error:
                    tools.call(name, arguments)
                assert "\n" not in str(error.value)
        tools.call("search", {"text": str(secret)})  # these are words
        tools.call("classify", {"paths": ["files/cat.jpg"], "labels": [str(secret), "/etc/passwd"]})
        assert not [path for path in opened if "secret" in path or "link" in path or "passwd" in path]
        tools.call("caption", {"paths": ["files/cat.jpg"]})
        assert str(collection / "cat.jpg") in opened
    finally:
        (collection / "link.jpg").unlink()


def test_files_are_read_when_the_generator_asks_for_them(tools, opened, collection):
    class Slow(Stub):
        def caption(self, files, on_error):
            return super().caption([next(files)], on_error)

    IndexTools(tools.index, Slow()).caption(["cat.jpg", "dog.jpg"])
    assert str(collection / "cat.jpg") in opened
    assert str(collection / "dog.jpg") not in opened


def test_file_that_has_become_another_is_not_read(tmp_path, samples, random_folder):
    for name in ("cat", "dog", "sea"):
        shutil.copy(samples / "images" / f"{name}.jpg", tmp_path)
    build(tmp_path / "index", [str(tmp_path)], str(random_folder), device="cpu", progress=False)
    (tmp_path / "cat.jpg").unlink()
    (tmp_path / "cat.jpg").symlink_to(samples / "images" / "bus.jpg")
    (tmp_path / "dog.jpg").unlink()
    with Index.open(tmp_path / "index", device="cpu") as index:
        tools = IndexTools(index, Stub())
        with pytest.raises(UserError, match="not the file any more that was indexed; run onepeace index update"):
            tools.answer("cat.jpg", "what?")
        with pytest.raises(UserError, match="no such file now; run onepeace index update"):
            tools.answer("dog.jpg", "what?")
        assert tools.answer("sea.jpg", "what?")


# Calls


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("find", {}, "no tool 'find'; there are search, classify, caption, answer, ground"),
        ("search", {}, "nothing to search for; give text, like or both"),
        ("search", {"text": "", "like": None}, "nothing to search for; give text, like or both"),
        ("search", {"query": "a"}, "search: got an unexpected keyword argument 'query'; it takes text, like, only, "),
        ("search", {"text": "a", "top": "3"}, "search: top is '3'; it must be int"),
        ("search", {"text": "a", "top": True}, "search: top is True; it must be int"),
        ("search", {"text": "a", "top": 0}, "top is 0; give 1 to 100"),
        ("search", {"text": "a", "top": 101}, "top is 101; give 1 to 100"),
        ("search", {"text": "a", "only": "picture"}, "search: only is 'picture'; it must be "),
        ("search", {"text": 3}, "search: text is 3; it must be "),
        ("search", {"text": "a" * 20_001}, "text has 20,001 characters; give at most 20,000"),
        ("search", {"text": "a", "where": "colour = 1"}, "where, position 1: no field 'colour'; there are size,"),
        ("search", {"text": "a", "after": "May"}, "after: "),
        ("search", {"text": "a", "path_glob": "[z-a]"}, "path-glob: '[z-a]' is not a pattern"),
        ("search", "{", "search: the arguments are not JSON ("),
        ("search", "[1]", "search: the arguments are list; give an object with their names"),
        ("classify", {"labels": ["a"]}, "classify: missing a required argument: 'paths'; it takes paths, labels"),
        ("classify", {"paths": "cat.jpg", "labels": ["a"]}, "classify: paths is 'cat.jpg'; it must be list[str]"),
        ("classify", {"paths": [1], "labels": ["a"]}, "classify: paths is [1]; it must be list[str]"),
        ("classify", {"paths": ["cat.jpg"], "labels": [" "]}, "labels has 0 names; give 1 to 200"),
        ("classify", {"paths": [], "labels": ["a"]}, "paths has 0 files; give 1 to 128"),
        ("answer", {"path": "cat.jpg"}, "answer: missing a required argument: 'question'; it takes path, question"),
    ],
)  # fmt: skip
def test_wrong_call_is_refused_in_one_line(tools, name, arguments, said):
    with pytest.raises(UserError) as error:
        tools.call(name, arguments)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_call_takes_what_models_and_servers_write(tools):
    wanted = tools.search(text="a\0dog", top=2)
    assert len(wanted["files"]) == 2
    assert tools.call("search", {"text": "a\0dog", "only": "", "like": None, "top": 2}) == wanted
    assert tools.call("search", json.dumps({"text": "a\0dog", "top": 2})) == wanted


def test_call_sees_what_was_written_meanwhile(tmp_path, samples, random_folder):
    shutil.copy(samples / "images" / "cat.jpg", tmp_path)
    options = {"device": "cpu", "progress": False}
    build(tmp_path / "index", [str(tmp_path / "cat.jpg")], str(random_folder), **options)
    with Index.open(tmp_path / "index", device="cpu") as index:
        tools = IndexTools(index)
        assert tools.call("search", {"text": "a"})["compared"] == 1
        build(tmp_path / "index", [str(samples / "images" / "dog.jpg")], str(random_folder), **options)
        assert tools.search(text="a")["compared"] == 1
        assert tools.call("search", {"text": "a"})["compared"] == 2
        shutil.rmtree(tmp_path / "index")
        fabricate(tmp_path / "index", [(Item("/a.jpg", "image"), np.ones(16))])
        with pytest.raises(UserError, match="made anew with another model; open it, or start the server, again"):
            tools.call("search", {"text": "a"})


# Schemas and chats


def test_schemas_are_made_of_the_signatures(tools):
    schemas = [get_json_schema(function)["function"] for function in tools.functions.values()]
    assert [schema["name"] for schema in schemas] == list(tools.functions)
    search = schemas[0]["parameters"]
    assert "required" not in search
    assert search["properties"]["only"]["enum"] == ["image", "audio", "text", "video"]
    assert search["properties"]["top"]["type"] == "integer"
    assert schemas[1]["parameters"]["required"] == ["paths", "labels"]
    assert "as search gives them" in schemas[1]["parameters"]["properties"]["paths"]["description"]
    for schema in schemas:
        assert "Args:" not in schema["description"]
        assert all(field["description"] for field in schema["parameters"]["properties"].values())


CALLS = [
    '<tool_call>{"name": "search", "arguments": {"text": "a cat", "only": "image", "top": 2}}</tool_call>',
    '<tool_call>{"name": "classify", "arguments": {"paths": "../secret"}}</tool_call>',
    "Two pictures.",
]
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>",
    "fields": {
        "tool_calls": {
            "open": "<tool_call>", "close": "</tool_call>", "repeats": True, "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close": "</s>", "content": "text"},
    },
}  # fmt: skip
CHAT_TEMPLATE = (
    "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    "{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class Script(LogitsProcessor):
    """Makes a model write one text after another, whatever it was about to write."""

    def __init__(self, tokenizer, texts):
        self.texts = [tokenizer.encode(f"{text}</s>", add_special_tokens=False) for text in texts]
        self.left, self.prompts = [], []

    def __call__(self, ids, scores):
        if not self.left:
            self.left = self.texts[len(self.prompts)].copy()
            self.prompts.append(ids[0])
        forced = torch.full_like(scores, -torch.inf)
        forced[0, self.left.pop(0)] = 0
        return forced


def check_conversation(messages):
    assert [message["role"] for message in messages] == ["user", *("assistant", "tool") * 2, "assistant"]
    found = json.loads(messages[2]["content"])
    assert (len(found["files"]), found["compared"]) == (2, 4)
    assert json.loads(messages[4]["content"]) == {
        "error": "classify: missing a required argument: 'labels'; it takes paths, labels"
    }
    assert messages[5]["content"] == "Two pictures."


def test_chat_model_of_transformers_calls_the_tools(tools, tmp_path):
    train_bpe(["a cat on a chair", *CALLS], 400).save(str(tmp_path / "tokenizer.json"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), eos_token="</s>")  # noqa: S106
    tokenizer.chat_template, tokenizer.response_template = CHAT_TEMPLATE, RESPONSE_TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8192, eos_token_id=tokenizer.eos_token_id, bos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    script = Script(tokenizer, CALLS)
    options = {"max_new_tokens": 200, "do_sample": False, "logits_processor": [script]}
    respond = chat.by_transformers(LlamaForCausalLM(config).eval(), tokenizer, tools, **options)
    messages = chat.converse(respond, tools, "Is there a cat?")
    check_conversation(messages)
    prompts = tokenizer.batch_decode(script.prompts)
    assert "a description in English of what is seen or heard" in prompts[0]
    assert "files/" in prompts[1]
    assert "missing a required argument" in prompts[2]


def test_model_behind_a_server_of_openais_protocol_calls_the_tools(tools):
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            requests.append((self.path, json.loads(self.rfile.read(int(self.headers["content-length"])))))
            said = CALLS[len(requests) - 1]
            message = {"role": "assistant", "content": said}
            if call := re.fullmatch("<tool_call>(.*)</tool_call>", said):
                function = json.loads(call[1])
                function["arguments"] = json.dumps(function["arguments"])
                one = {"id": f"call{len(requests)}", "type": "function", "function": function}
                message = {"role": "assistant", "content": None, "tool_calls": [one]}
            answer = {
                "id": "1", "object": "chat.completion", "created": 1, "model": "m", "system_fingerprint": "",
                "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            }  # fmt: skip
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with serving(Handler) as address:
        respond = chat.by_server(f"{address}/v1", tools, model="small")
        messages = chat.converse(respond, tools, "Is there a cat?")
    check_conversation(messages)
    assert {path for path, _ in requests} == {"/v1/chat/completions"}
    first, _, last = (body for _, body in requests)
    assert [tool["function"]["name"] for tool in first["tools"]] == list(tools.functions)
    assert first["model"] == "small"
    assert [message.get("tool_call_id") for message in last["messages"]] == [None, None, "call1", None, "call2"]
    assert "null" not in json.dumps(last["messages"][1]["tool_calls"])


def test_conversation_ends_after_so_many_turns(tools):
    call = {"type": "function", "function": {"name": "search", "arguments": {"text": "a", "top": 1}}}
    messages = chat.converse(lambda _: {"role": "assistant", "tool_calls": [call]}, tools, "?", turns=3)
    assert [message["role"] for message in messages] == ["user", *("assistant", "tool") * 3]
