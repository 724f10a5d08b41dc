"""Exported branches: the vectors of the model without it, from raw inputs of any number and length."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from support.random_model import save_random_model

import onepeace
from onepeace.cli import main
from onepeace.config import MaskedDecoderConfig
from onepeace.errors import UserError
from onepeace.export import folder as folders
from onepeace.export import int8
from onepeace.export.folder import export_model

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

EXAMPLE = Path(__file__).with_name("text_search.py")
WORDS = "A dog, barks at İstanbul's 日本 while 2 cats\tsleep".split(" ")
TEXTS = ["", "...Dog \t\n", ", a  cat!", *(" ".join(WORDS[i % 9] for i in range(n)) for n in range(1, 30))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder; its decoder and the head that reads two items at once have no part in an export."""
    torch.manual_seed(0)
    decoder = MaskedDecoderConfig(16, 1, 2, 24)
    head = {"kind": "classifier", "on": "text", "num_classes": 3, "num_heads": 2}
    heads = {
        "topic": {**head, "task": "label", "labels": ["cat", "dog", "owl"], "pool": "cls", "hidden_ratio": 0},
        "moods": {**head, "task": "labels", "labels": ["glad", "sad", "calm"]},
        "pair": {**head, "inputs": 2},
    }
    return save_random_model(tmp_path_factory.mktemp("export") / "model", depth=1, decoder=decoder, heads=heads)


@pytest.fixture(scope="module")
def model(folder):
    return onepeace.load(folder, device="cpu")


@pytest.fixture(scope="module")
def exported(folder):
    """Texts; to make a graph takes seconds, so tests of the others are slow."""
    return export(folder, "text", ["SHA256SUMS", "export.json", "text.onnx", "tokenizer.json"])


@pytest.fixture(scope="module")
def exported_media(folder):
    return export(folder, "image,audio", ["SHA256SUMS", "audio.onnx", "export.json", "image.onnx"])


def export(folder, modalities, names):
    out = folder.parent / modalities
    assert main(["export", str(folder), "-o", str(out), "--modalities", modalities]) == 0
    assert sorted(file.name for file in out.iterdir()) == names
    return out


BRANCHES = ["text", *(pytest.param(key, marks=pytest.mark.slow) for key in ("image", "audio"))]


@pytest.fixture
def graph_of(request):
    """The folder with the exported branch of a modality."""
    return lambda key: request.getfixturevalue("exported" if key == "text" else "exported_media")


@pytest.fixture
def graphs_at_hand(exported, monkeypatch):
    """An export then takes the graphs that are there in place of making them, which takes seconds."""
    asked = []

    def take(program, path, branch, *, external_data=False):
        asked.append((path.name, branch.names, external_data))
        shutil.copyfile(exported / "text.onnx", path)

    program = SimpleNamespace(state_dict={"weight": torch.ones(9)})
    monkeypatch.setattr(folders, "trace", lambda *arguments: program)
    monkeypatch.setattr(folders, "write_onnx", take)
    return asked


def pictures(count):
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (20 + 7 * i, 50, 3), dtype=np.uint8) for i in range(count)]


def sounds():
    rng = np.random.default_rng(4)
    return [
        (rng.normal(0.1, 0.2, count).astype(np.float32), 16000) for count in (3000, 8000, 8001, 20011, 32000, 50000)
    ]


def run(folder, model, key, items, output="vectors"):
    """An output of a branch for items, which are one batch."""
    about = json.loads((folder / "export.json").read_text())["branches"][key]
    session = onnxruntime.InferenceSession(folder / about["file"])
    samples = [model.processors[key].decode(item) for item in items]
    feed = {name: tensor.numpy() for name, tensor in model.processors[key].collate(samples).items()}
    if "lengths" in about["inputs"]:
        feed["lengths"] = np.array([len(sample) for sample in samples])
    assert {name: array.dtype.name for name, array in feed.items()} == {
        name: one["dtype"] for name, one in about["inputs"].items()
    }
    return session.run([output], feed)[0]


@pytest.mark.parametrize("key", BRANCHES)
def test_vectors_are_those_of_the_model_for_any_number_and_length(graph_of, model, key):
    for items in (items_of(key)[:1], items_of(key)[1:3], items_of(key)):
        want = getattr(model, f"encode_{key}")(items).numpy()
        np.testing.assert_allclose(run(graph_of(key), model, key, items), want, rtol=0, atol=1e-5)


def items_of(key):
    return {"text": TEXTS, "image": pictures(6), "audio": sounds()}[key]


@pytest.mark.slow
def test_record_says_how_pictures_are_read(exported_media, model):
    about = json.loads((exported_media / "export.json").read_text())["branches"]["image"]["preprocessing"]
    picture = pictures(1)[0]
    height, width = about["size"]
    pixels = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    pixels = ((pixels / 255 - about["mean"]) / about["std"]).transpose(2, 0, 1)
    np.testing.assert_allclose(pixels, model.processors["image"].decode(picture).numpy(), rtol=0, atol=1e-5)


RUN = """
import runpy, sys
sys.modules["torch"] = sys.modules["onepeace"] = None
names = runpy.run_path({example!r})
import numpy
numpy.save("found.npy", names["encode"]({texts!r}))
"""


def test_example_without_torch_and_onepeace(exported, model, tmp_path):
    shutil.copytree(exported, tmp_path / "exported")
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(6, model.embed_dim)).astype(np.float32)
    names = [f"{i}.jpg" for i in range(len(vectors))]
    np.savez(tmp_path / "vectors.npz", vectors=vectors, paths=names)
    code = RUN.format(example=str(EXAMPLE), texts=TEXTS)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npy")
    assert (found.shape, found.dtype) == ((len(TEXTS), model.embed_dim), np.float32)
    np.testing.assert_allclose(found, model.encode_text(TEXTS).numpy(), rtol=0, atol=1e-4)
    scores = vectors @ model.encode_text(["a dog barking"])[0].numpy()
    assert [line.split()[1] for line in done.stdout.splitlines()] == [names[i] for i in np.argsort(-scores)[:3]]


@pytest.fixture
def all_weights(monkeypatch):
    """The weights of a small model are small."""
    monkeypatch.setattr(int8, "LEAST", 256)


def weights_of(model):
    return {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}


@pytest.mark.usefixtures("all_weights")
@pytest.mark.parametrize("key", BRANCHES)
def test_stored_weights_are_those_of_the_file_to_half_a_step(graph_of, key):
    graph = onnx.load(graph_of(key) / f"{key}.onnx")
    before = weights_of(graph)
    int8.store(graph)
    after = weights_of(graph)
    stored = [name for name in before if f"{name}_int8" in after]
    assert set(after) == set(before) - set(stored) | {f"{name}{end}" for name in stored for end in ("_int8", "_scale")}
    least = 0.1 if key == "audio" else 0.6  # most of a small branch of sounds are the waves of its spectra
    assert sum(before[name].size for name in stored) > least * sum(one.size for one in before.values())
    for name in stored:
        step = after[f"{name}_scale"]
        assert after[f"{name}_int8"].dtype == np.int8
        assert step.size > 1
        assert np.abs(after[f"{name}_int8"]).max() == 127
        assert (np.abs(after[f"{name}_int8"] * step - before[name]) <= 0.501 * step).all()


@pytest.mark.usefixtures("all_weights", "graphs_at_hand")
def test_int8_keeps_near_the_model(exported, folder, model, tmp_path):
    done = export_model(folder, tmp_path / "int8", form="int8", modalities=["text"])
    assert [file.modality for file in done] == ["text"]
    for file in done:
        items = items_of(file.modality)
        want = getattr(model, f"encode_{file.modality}")(items).numpy()
        cosines = (run(tmp_path / "int8", model, file.modality, items) * want).sum(1)
        assert 0.98 < float(cosines.min()) < 1 - 1e-7
        assert 1e-4 < file.distance < folders.TOLERANCE["int8"]
        assert file.bytes == file.path.stat().st_size
        operators = {node.op_type for node in onnx.load(file.path).graph.node}
        assert "MatMulInteger" in operators
        assert not any(file.path.parent.glob("tmp*"))


@pytest.mark.usefixtures("all_weights")
def test_weights_that_one_file_cannot_hold_get_a_second(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(int8, "SINGLE_FILE", 0)
    int8.quantize(exported / "text.onnx", tmp_path / "text.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["text.onnx", "text.onnx.data"]
    assert onnxruntime.InferenceSession(tmp_path / "text.onnx").get_outputs()[0].name == "vectors"


def test_graph_that_one_file_cannot_hold_gets_its_weights_beside_it(folder, graphs_at_hand, tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "SINGLE_FILE", 35)
    export_model(folder, tmp_path / "out", modalities=["text"])
    monkeypatch.setattr(folders, "SINGLE_FILE", 36)
    export_model(folder, tmp_path / "out", modalities=["text"], replace=True)
    assert graphs_at_hand == [("text.onnx", ["ids", "lengths"], True), ("text.onnx", ["ids", "lengths"], False)]


@pytest.mark.usefixtures("graphs_at_hand")
def test_folder_is_replaced_when_asked_but_for_files_of_others(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(folders, "distances", lambda *arguments: {"vectors": 1e-6})
    out = tmp_path / "out"
    command = ["export", str(folder), "-o", str(out), "--modalities"]
    assert main([*command, "text,image"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["file", str(out / "text.onnx"), str(out / "image.onnx")]
    assert main([*command, "image"]) == 2
    assert str(out) in capsys.readouterr().err
    (out / "thesis.txt").write_text("three years of work")
    assert main([*command, "image", "--force"]) == 0
    assert sorted(file.name for file in out.iterdir()) == ["SHA256SUMS", "export.json", "image.onnx", "thesis.txt"]
    (out / "SHA256SUMS").unlink()
    assert main([*command, "image", "--force"]) == 2
    assert "will not be replaced" in capsys.readouterr().err
    assert (out / "thesis.txt").exists()
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("graphs_at_hand")
@pytest.mark.parametrize(("form", "apart"), [("onnx", 1.1e-4), ("int8", 0.41), ("onnx", float("inf"))])
def test_file_with_other_vectors_gets_no_name(folder, tmp_path, monkeypatch, form, apart):
    found = iter([apart] if form == "onnx" else [1e-6, apart])
    monkeypatch.setattr(folders, "distances", lambda *arguments: {"vectors": next(found)})
    with pytest.raises(UserError, match=f"{form} export of text"):
        export_model(folder, tmp_path / "out", modalities=["text"], form=form)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["text", pytest.param("audio", marks=pytest.mark.slow)])
def test_program_of_torch_has_the_vectors_and_no_decoder(folder, model, tmp_path, key):
    out = tmp_path / "out"
    assert main(["export", str(folder), "-o", str(out), "--form", "torch", "--modalities", key]) == 0
    assert f"{key}.pt2" in [file.name for file in out.iterdir()]
    loaded = torch.export.load(out / f"{key}.pt2")
    assert not [name for name in loaded.state_dict if "decoder" in name]
    assert any(name.startswith("decoder") for name, _ in model.module.named_parameters())
    program, processor = loaded.module(), model.processors[key]
    for items in (items_of(key)[:1], items_of(key)):
        samples = [processor.decode(item) for item in items]
        (tensor, *_) = processor.collate(samples).values()
        got = program(tensor, torch.tensor([len(sample) for sample in samples]))
        if key == "text":
            got = got[0]  # then come the probabilities of its heads
        torch.testing.assert_close(got, getattr(model, f"encode_{key}")(items), rtol=0, atol=1e-5)


def test_heads_are_outputs_of_the_branch_of_their_modality(exported, model):
    branch = json.loads((exported / "export.json").read_text())["branches"]["text"]
    assert {name: entry["labels"] for name, entry in branch["heads"].items()} == {
        "topic": ["cat", "dog", "owl"],
        "moods": ["glad", "sad", "calm"],
    }
    for name, entry in branch["heads"].items():
        probabilities = run(exported, model, "text", TEXTS, output=name)
        for row, result in zip(probabilities, model.predict(TEXTS, head=name), strict=True):
            wanted = {label["label"]: label["score"] for label in result["labels"]}
            assert dict(zip(entry["labels"], row, strict=True)) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.usefixtures("graphs_at_hand")
def test_file_with_other_probabilities_gets_no_name(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "distances", lambda *arguments: {"vectors": 1e-6, "topic": 1.1e-4})
    with pytest.raises(UserError, match="its topic differ"):
        export_model(folder, tmp_path / "out", modalities=["text"])
    assert not list(tmp_path.iterdir())


def test_readme_has_the_same_program():
    readme = (EXAMPLE.parents[2] / "docs" / "guide" / "embed.md").read_text(encoding="utf-8")
    assert f"```python\n{EXAMPLE.read_text(encoding='utf-8')}```" in readme
