"""The exported text encoder: the vectors of its model without torch, or none at all."""

import copy
import json
import logging
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from support.random_model import save_random_model

from onepeace.embed.embedder import Embedder
from onepeace.errors import UserError
from onepeace.export import graph
from onepeace.index import text_encoder
from onepeace.index import write as index_write
from onepeace.index.text_encoder import MODEL, RECORD, TOKENIZER, WEIGHTS, OnnxTextEncoder, export_text_encoder
from onepeace.processors import TextProcessor

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

FILES = (MODEL, WEIGHTS, TOKENIZER, RECORD)
WORDS = "A dog, barks at İstanbul's 日本 while 2 cats sleep".split()
TEXTS = ["", "\0", "\ud800", "...Dog\t\n", "x" * 9000, *(" ".join(WORDS[i % 9] for i in range(n)) for n in range(40))]


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index") / "model"
    export_text_encoder(model, folder, model_hash="hash")
    assert sorted(os.listdir(folder)) == sorted(FILES)
    return folder


@pytest.fixture
def own_copy(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "model")


@pytest.fixture
def graph_at_hand(exported, monkeypatch):
    """An export then takes the graph that is there in place of making one, which takes seconds."""

    def take(program, path, names, **options):
        for name in (MODEL, WEIGHTS):
            shutil.copyfile(exported / name, path.with_name(name))

    monkeypatch.setattr(graph, "trace", lambda *arguments: None)
    monkeypatch.setattr(graph, "write_onnx", take)


def open_encoder(folder, model_hash="hash"):
    encoder = OnnxTextEncoder.open(folder, model_hash)
    assert encoder is not None
    return encoder


def test_vectors_are_those_of_the_model_in_order(exported, model):
    vectors = open_encoder(exported).encode(TEXTS)
    assert (vectors.shape, vectors.dtype) == ((len(TEXTS), model.embed_dim), np.float32)
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(vectors, model.encode_text(TEXTS, output="numpy"), rtol=0, atol=2e-6)
    assert open_encoder(exported).encode([]).shape == (0, model.embed_dim)


def test_end_of_text_alone_has_its_vector(exported, model):
    """As the empty text is read where no space is put in front."""
    inputs = {"ids": torch.tensor([[2]]), "lengths": torch.tensor([1])}
    (vectors,) = open_encoder(exported).session.run(None, {name: value.numpy() for name, value in inputs.items()})
    np.testing.assert_allclose(vectors, model.module({"text": inputs})["text"].detach(), rtol=0, atol=2e-6)


def test_encoder_runs_without_torch_and_tells_nobody(exported):
    code = f"""
import os, sys
from onepeace.index.text_encoder import OnnxTextEncoder
print(OnnxTextEncoder.open({str(exported)!r}, "hash").encode(["a dog", "two cats"]).shape)
loaded = {{name.partition(".")[0] for name in sys.modules}}
print(os.environ["ORT_DISABLE_TELEMETRY"], loaded & {{"torch", "PIL", "onnx"}})
"""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines() == ["(2, 16)", "1 set()"], done.stderr


def truncated(data):
    return data[: len(data) // 2]


def flipped(data):
    return data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]


@pytest.mark.parametrize("damage", [truncated, flipped, None])
@pytest.mark.parametrize("name", FILES)
def test_damaged_export_is_not_used(own_copy, name, damage, caplog):
    path = own_copy / name
    if damage:
        path.write_bytes(damage(path.read_bytes()))
    else:
        path.unlink()
    with caplog.at_level(logging.DEBUG, "onepeace"):
        assert OnnxTextEncoder.open(own_copy, "hash") is None
    (record,) = caplog.records
    assert "no exported text encoder" in record.message if name == RECORD and not damage else name in record.message


@pytest.mark.parametrize("content", [b"[]", b"null", b"{}", b"\xff", b""])
def test_record_of_another_kind_is_damaged(own_copy, content):
    (own_copy / RECORD).write_bytes(content)
    assert OnnxTextEncoder.open(own_copy, "hash") is None


def change_record(folder, **changes):
    """With its own checksum and those of the files put right."""
    record = {**json.loads((folder / RECORD).read_text()), **changes}
    del record["checksum"]
    record["files"] = {name: text_encoder._state(folder / name) for name in record["files"]}
    (folder / RECORD).write_text(json.dumps({**record, "checksum": text_encoder._checksum(record)}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: change_record(folder, model_hash="other"), "made of another model (other, not hash)"),
        (lambda folder: change_record(folder, format=2), "format 2, and this onepeace reads 1"),
        (
            lambda folder: (folder / MODEL).write_bytes(b"no graph") and change_record(folder),
            "does not read model.onnx",
        ),
    ],
    ids=["model", "format", "graph"],
)
def test_foreign_export_is_not_used(own_copy, change, message, caplog):
    change(own_copy)
    with caplog.at_level(logging.INFO, "onepeace"):
        assert OnnxTextEncoder.open(own_copy, "hash") is None
    (record,) = caplog.records
    assert message in record.message
    assert "\n" not in record.message


@pytest.mark.usefixtures("graph_at_hand")
def test_export_with_other_vectors_is_refused_and_the_old_one_stays(model, own_copy):
    changed = copy.deepcopy(model.module)
    with torch.no_grad():
        changed.heads["text"].weight[0] += 0.001
    with pytest.raises(UserError, match=r"^the exported text encoder is refused: its vector of .* is .* away"):
        export_text_encoder(Embedder(changed, model.processors), own_copy, model_hash="new")
    assert OnnxTextEncoder.open(own_copy, "new") is None
    assert len(open_encoder(own_copy).encode(["a dog"])) == 1
    assert sorted(os.listdir(own_copy)) == sorted(FILES)


@pytest.mark.usefixtures("graph_at_hand")
@pytest.mark.parametrize("step", range(8))
def test_export_that_fails_on_the_way_leaves_the_old_one_or_none(model, own_copy, step, monkeypatch):
    (own_copy / TOKENIZER).write_text((own_copy / TOKENIZER).read_text() + " ")
    change_record(own_copy)
    calls, replace = [], os.replace

    def fail(source, target):
        calls.append(target)
        if len(calls) > step:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        export_text_encoder(model, own_copy, model_hash="new")
    monkeypatch.undo()
    assert OnnxTextEncoder.open(own_copy, "new") is None
    old = OnnxTextEncoder.open(own_copy, "hash")
    assert (old is None) == (step >= 6), "the tokenizer is the third file, and each is moved twice"
    assert not list(own_copy.glob("*part*"))


@pytest.mark.usefixtures("graph_at_hand")
def test_export_replaces_the_old_one_and_reports_no_cut_text(model, own_copy, caplog):
    (own_copy / "part").mkdir()
    (own_copy / "part" / "left").touch()
    model.processors["text"].report_cut = True
    export_text_encoder(model, own_copy, model_hash="new")
    assert not caplog.records
    assert model.processors["text"].report_cut
    assert OnnxTextEncoder.open(own_copy, "hash") is None
    assert open_encoder(own_copy, "new").pieces.report_cut
    assert sorted(os.listdir(own_copy)) == sorted(FILES)


def without_text(model):
    return Embedder(model.module, {key: model.processors[key] for key in ("image", "audio")})


def half(model):
    return Embedder(copy.deepcopy(model.module).bfloat16(), model.processors)


def unlimited(model):
    return Embedder(model.module, {"text": TextProcessor(model.processors["text"].tokenizer, max_tokens=None)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_text, "no vectors of texts"),
        (half, "not from torch.bfloat16 on cpu"),
        (unlimited, "max_tokens is null"),
    ],
)
def test_model_that_cannot_be_exported_is_named(model, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        export_text_encoder(change(model), tmp_path / "model", model_hash="hash")
    assert not (tmp_path / "model").exists()


def test_network_that_torch_cannot_export_is_an_error_of_one_line(model, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise torch.onnx.errors.OnnxExporterError("step 2\nof 3") from ValueError("no\nsuch operator")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(UserError, match=r"^torch cannot export this model: no such operator$"):
        export_text_encoder(model, tmp_path / "model", model_hash="hash")
    assert not list((tmp_path / "model").iterdir())


@pytest.mark.parametrize("error", [UserError("max_tokens is null"), OSError(28, "No space left on device")])
def test_export_that_fails_costs_a_build_nothing(build, samples, tmp_path, monkeypatch, caplog, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(index_write, "EXPORT_FROM", 1)
    monkeypatch.setattr(text_encoder, "export_text_encoder", fail)
    with caplog.at_level(logging.WARNING, "onepeace"):
        assert build(tmp_path / "index", samples / "images" / "cat.jpg").added == 1
    (record,) = caplog.records
    assert f"no text encoder is kept ({error})" in record.message


def test_model_without_texts_is_not_asked_for_a_text_encoder(build, samples, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(index_write, "EXPORT_FROM", 1)
    pictures = save_random_model(tmp_path / "pictures", ("image",))
    with caplog.at_level(logging.WARNING, "onepeace"):
        assert build(tmp_path / "index", samples / "images" / "cat.jpg", model=pictures).added == 1
    assert not caplog.records
