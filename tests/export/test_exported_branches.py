"""Exported branches: the vectors of the model without it, from raw inputs of any number and length."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.golden_cases import assert_near
from support.random_model import save_random_model

import onepeace
from onepeace.cli import main
from onepeace.config import MaskedDecoderConfig
from onepeace.errors import UserError
from onepeace.export import folder as folders
from onepeace.export import graph, int8, text_branch
from onepeace.export.exported import with_text_branch
from onepeace.export.folder import export_model
from onepeace.export.text_branch import TextBranch
from onepeace.hub.resolve import fingerprint
from onepeace.index import Index, maintain, query

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

EXAMPLE = Path(__file__).with_name("text_search.py")
BRANCHES = [
    "text",
    pytest.param("image", marks=pytest.mark.slow),
    pytest.param("audio", marks=pytest.mark.slow),
]


def make_texts():
    """Empty, in need of cleaning, and of 1 to 29 words."""
    words = "A dog, barks at İstanbul's 日本 while 2 cats\tsleep".split(" ")
    texts = ["", "...Dog \t\n", ", a  cat!"]
    for count in range(1, 30):
        texts.append(" ".join(words[i % 9] for i in range(count)))
    return texts


def make_pictures():
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (20 + 7 * i, 50, 3), dtype=np.uint8) for i in range(6)]


def make_sounds():
    rng = np.random.default_rng(4)
    sounds = []
    for length in (3000, 8000, 8001, 20011, 32000, 50000):
        waveform = rng.normal(0.1, 0.2, length).astype(np.float32)
        sounds.append((waveform, 16000))
    return sounds


TEXTS = make_texts()
ITEMS = {"text": TEXTS, "image": make_pictures(), "audio": make_sounds()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder; its decoder and the head that reads two items at once have no part in an export."""
    torch.manual_seed(0)
    head = {"kind": "classifier", "on": "text", "num_classes": 3, "num_heads": 2}
    heads = {
        "topic": {**head, "task": "label", "labels": ["cat", "dog", "owl"], "pool": "cls", "hidden_ratio": 0},
        "moods": {**head, "task": "labels", "labels": ["glad", "sad", "calm"]},
        "pair": {**head, "inputs": 2},
    }
    decoder = MaskedDecoderConfig(16, 1, 2, 24)
    return save_random_model(tmp_path_factory.mktemp("export") / "model", depth=1, decoder=decoder, heads=heads)


@pytest.fixture(scope="module")
def model(folder):
    return onepeace.load(folder, device="cpu")


def encode(model, modality, items):
    return getattr(model, f"encode_{modality}")(items)


def names_in(folder):
    return sorted(file.name for file in folder.iterdir())


def export(folder, modalities):
    out = folder.parent / modalities
    assert main(["export", str(folder), "-o", str(out), "--modalities", modalities]) == 0
    return out


@pytest.fixture(scope="module")
def traced_once():
    """Both forms of an export share the trace of a branch, which takes seconds."""
    programs = {}

    def trace(branch, example):
        if branch.key not in programs:
            programs[branch.key] = graph.trace(branch, example)
        return programs[branch.key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folders, "trace", trace)
        yield


@pytest.fixture(scope="module")
def exported(folder, traced_once):
    """Texts; to make a graph takes seconds, so tests of the others are slow."""
    return export(folder, "text")


@pytest.fixture(scope="module")
def exported_media(folder, traced_once):
    return export(folder, "image,audio")


@pytest.fixture
def exported_with(request):
    """The folder with the exported branch of a modality."""
    return lambda modality: request.getfixturevalue("exported" if modality == "text" else "exported_media")


def branch_record(exported, modality):
    return json.loads((exported / "export.json").read_text())["branches"][modality]


def run(exported, processor, items, output="vectors"):
    """An output of a branch for items, which are one batch."""
    record = branch_record(exported, processor.key)
    samples = [processor.decode(item) for item in items]
    inputs = {name: tensor.numpy() for name, tensor in processor.collate(samples).items()}
    if "lengths" in record["inputs"]:
        inputs["lengths"] = np.array([len(sample) for sample in samples])
    for name, array in inputs.items():
        assert array.dtype.name == record["inputs"][name]["dtype"]
    session = onnxruntime.InferenceSession(exported / record["file"])
    return session.run([output], inputs)[0]


def test_folder_of_texts(exported):
    assert names_in(exported) == ["SHA256SUMS", "export.json", "text.onnx", "tokenizer.json"]


@pytest.mark.parametrize("modality", BRANCHES)
def test_vectors_are_those_of_the_model(exported_with, model, modality):
    """For any number and length."""
    for items in (ITEMS[modality][:1], ITEMS[modality][1:3], ITEMS[modality]):
        vectors = run(exported_with(modality), model.processors[modality], items)
        assert_near(torch.from_numpy(vectors), encode(model, modality, items), 1e-5)


def test_heads_are_outputs_of_the_branch_of_their_modality(exported, model):
    """A head that reads two items at once is none."""
    heads = branch_record(exported, "text")["heads"]
    assert set(heads) == {"topic", "moods"}
    for name, head in heads.items():
        probabilities = run(exported, model.processors["text"], TEXTS, output=name)
        for row, prediction in zip(probabilities, model.predict(TEXTS, head=name), strict=True):
            expected = {label["label"]: label["score"] for label in prediction["labels"]}
            assert dict(zip(head["labels"], row, strict=True)) == pytest.approx(expected, abs=1e-5)


# The documented program


EXAMPLE_WITHOUT_TORCH = """
import runpy, sys
sys.modules["torch"] = sys.modules["onepeace"] = None
names = runpy.run_path({example!r})
import numpy
numpy.save("encoded.npy", names["encode"]({texts!r}))
"""


def test_example_without_torch_and_onepeace(exported, model, tmp_path):
    shutil.copytree(exported, tmp_path / "exported")
    vectors = np.random.default_rng(0).normal(size=(6, model.embed_dim)).astype(np.float32)
    names = [f"{i}.jpg" for i in range(6)]
    np.savez(tmp_path / "vectors.npz", vectors=vectors, paths=names)
    code = EXAMPLE_WITHOUT_TORCH.format(example=str(EXAMPLE), texts=TEXTS)
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr

    encoded = np.load(tmp_path / "encoded.npy")
    assert encoded.dtype == np.float32
    assert_near(torch.from_numpy(encoded), model.encode_text(TEXTS), 1e-4)
    scores = vectors @ model.encode_text(["a dog barking"])[0].numpy()
    best = [names[i] for i in np.argsort(-scores)[:3]]
    assert [line.split()[1] for line in process.stdout.splitlines()] == best


def test_example_is_the_documented_one():
    guide = (EXAMPLE.parents[2] / "docs" / "guide" / "embed.md").read_text(encoding="utf-8")
    assert f"```python\n{EXAMPLE.read_text(encoding='utf-8')}```" in guide


# Weights in eight bits


@pytest.fixture
def all_weights(monkeypatch):
    """The weights of a small model are small."""
    monkeypatch.setattr(int8, "LEAST", 256)


def weights_of(loaded):
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in loaded.graph.initializer}


@pytest.mark.usefixtures("all_weights")
def test_int8_weights_are_those_of_the_file_to_half_a_step(exported):
    loaded = onnx.load(exported / "text.onnx")
    weights = weights_of(loaded)
    int8.store(loaded)
    stored = weights_of(loaded)

    rounded_size = 0
    for name, weight in weights.items():
        if name in stored:
            continue
        rounded_size += weight.size
        numbers = stored.pop(f"{name}_int8")
        step = stored.pop(f"{name}_scale")
        assert numbers.dtype == np.int8
        assert np.abs(numbers).max() == 127
        assert step.size > 1
        assert (np.abs(numbers * step - weight) <= 0.501 * step).all()
    assert set(stored) < set(weights)
    assert rounded_size > 0.6 * sum(weight.size for weight in weights.values())


@pytest.mark.usefixtures("all_weights")
def test_int8_weights_that_one_file_cannot_hold(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(int8, "SINGLE_FILE", 0)
    int8.quantize(exported / "text.onnx", tmp_path / "text.onnx")
    assert names_in(tmp_path) == ["text.onnx", "text.onnx.data"]
    assert onnxruntime.InferenceSession(tmp_path / "text.onnx").get_outputs()[0].name == "vectors"


# What is written


@pytest.fixture
def graphs_at_hand(exported, monkeypatch):
    """An export then takes the graph of texts in place of making one, which takes seconds."""

    def copy_graph(program, path, branch, *, external_data=False):
        shutil.copyfile(exported / "text.onnx", path)

    program = SimpleNamespace(state_dict={"weight": torch.ones(9)})
    monkeypatch.setattr(folders, "trace", lambda *arguments: program)
    monkeypatch.setattr(folders, "write_onnx", copy_graph)


@pytest.mark.usefixtures("graphs_at_hand")
@pytest.mark.parametrize(
    ("form", "distances", "words"),
    [
        ("onnx", [{"vectors": 1.1e-4}], "onnx export of text"),
        ("onnx", [{"vectors": float("inf")}], "onnx export of text"),
        ("onnx", [{"vectors": 1e-6, "topic": 1.1e-4}], "topic"),
        ("int8", [{"vectors": 1e-6}, {"vectors": 0.41}], "int8 export of text"),
    ],
)
def test_file_with_other_outputs_gets_no_name(folder, tmp_path, monkeypatch, form, distances, words):
    measured = iter(distances)
    monkeypatch.setattr(folders, "distances", lambda *arguments: next(measured))
    with pytest.raises(UserError, match=words):
        export_model(folder, tmp_path / "out", modalities=["text"], form=form)
    assert not list(tmp_path.iterdir())


# Programs of torch


@pytest.mark.parametrize("modality", ["text", pytest.param("audio", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("traced_once")
def test_program_of_torch_has_the_vectors_and_no_decoder(folder, model, tmp_path, modality):
    arguments = ["-o", str(tmp_path / "out"), "--form", "torch", "--modalities", modality]
    assert main(["export", str(folder), *arguments]) == 0
    loaded = torch.export.load(tmp_path / "out" / f"{modality}.pt2")
    assert not [name for name in loaded.state_dict if "decoder" in name]
    assert model.module.decoder is not None

    program = loaded.module()
    processor = model.processors[modality]
    for items in (ITEMS[modality][:1], ITEMS[modality]):
        samples = [processor.decode(item) for item in items]
        tensor, *_ = processor.collate(samples).values()
        outputs = program(tensor, torch.tensor([len(sample) for sample in samples]))
        # After the vectors of texts come the probabilities of their heads.
        vectors = outputs[0] if modality == "text" else outputs
        assert_near(vectors, encode(model, modality, items), 1e-5)


# The text branch in the cache


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """The folder of text branches in the cache; none is there."""
    monkeypatch.setattr(text_branch, "cache_folder", lambda: tmp_path)
    return tmp_path / "text"


@pytest.fixture
def kept(exported, folder, cached):
    """The folder of the text branch in the cache, which has the name of the model's hash."""
    return shutil.copytree(exported, cached / fingerprint(folder))


def test_text_branch_has_the_vectors_of_the_model(kept, model):
    np.testing.assert_allclose(TextBranch.open(kept.name).encode(TEXTS), model.encode_text(TEXTS), atol=1e-5)


def test_model_with_its_text_branch_has_the_same_vectors(kept, model):
    prepared = with_text_branch(model)

    assert prepared is not model
    for texts in (TEXTS, ["a cat"], ["a cat", "a dog"]):
        np.testing.assert_allclose(prepared.encode_text(texts), model.encode_text(texts), atol=1e-5)
    np.testing.assert_array_equal(prepared.encode(ITEMS["image"]), model.encode(ITEMS["image"]))
    assert prepared.identity == model.identity
    assert prepared.logit_scale_of("image") == model.logit_scale_of("image")
    assert prepared.modalities_with_vectors == model.modalities_with_vectors


def test_lengths_are_given_where_an_export_needs_them(model):
    samples = [model.processors["text"].decode(text) for text in ("a cat", "a dog")]

    assert "lengths" not in model.inputs("text", samples)
    assert model.inputs("text", samples, lengths=True)["lengths"].tolist() == [len(sample) for sample in samples]
    assert "lengths" not in model.inputs("image", [torch.zeros(3, 32, 32)], lengths=True)


def test_text_branch_is_not_used_without_onnxruntime(kept, monkeypatch, caplog):
    monkeypatch.setattr(text_branch, "find_spec", lambda name: None)

    assert TextBranch.open(kept.name) is None
    assert "onepeace.export.text_branch" not in [record.name for record in caplog.records]


def test_damaged_text_branch_is_not_used_and_removed(kept, caplog):
    """The next update of an index then writes it again."""
    path = kept / "tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b"a", b"b", 1))

    with caplog.at_level(logging.WARNING, "onepeace"):
        assert TextBranch.open(kept.name) is None

    assert "tokenizer.json" in caplog.text
    assert not kept.exists()


@pytest.mark.usefixtures("cached")
def test_index_of_many_files_alone_is_searched_by_the_text_branch_which_is_written_once(
    exported, folder, tmp_path, monkeypatch
):
    exports = []

    def copy(name, target, *, modalities, replace):
        exports.append(modalities)
        shutil.copytree(exported, target)

    monkeypatch.setattr(folders, "export_model", copy)
    monkeypatch.setattr(query, "TEXT_BRANCH_FROM", 2)
    paths = []
    for number, expected in enumerate([[], [["text"]], [["text"]]]):
        paths.append(tmp_path / f"{number}.txt")
        paths[-1].write_text(f"words {number}")
        maintain.build(tmp_path / "index", paths, str(folder), device="cpu", progress=False)
        assert exports == expected

    maintain.build(tmp_path / "small", paths[:1], str(folder), device="cpu", progress=False)
    with Index.open(tmp_path / "small") as index:
        with index.reading() as state:
            assert not state.uses_text_branch  # so that its answers do not depend on other indexes

    monkeypatch.setattr("onepeace.embed.embedder.load", None)
    with Index.open(tmp_path / "index") as index:
        assert len(index.search("words", collapse=False)) == 3
