"""The CLIP_benchmark loader, against its own command: the figures are those of `onepeace evaluate`."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from support.clip_benchmark_folder import write_folder
from support.evaluation import measure, recipe_of
from support.small_shards import write_shard

import onepeace
from onepeace.plugins import clip_benchmark as plugin

pytest.importorskip("clip_benchmark")

NAMES = ("dog", "cat", "bus", "sunflower", "clock")
TEMPLATES = ("a photo of a {c}.", "a {c}")


@pytest.fixture
def pictures(samples):
    return [(samples / f"images/{name}.jpg").read_bytes() for name in NAMES]


@pytest.fixture
def evaluated(monkeypatch, tmp_path):
    """Runs CLIP_benchmark's command on a folder; gives its metrics."""
    from clip_benchmark import cli

    plugin.register()
    plugin.register()

    def run(folder, task, *options):
        output = tmp_path / "result.json"
        arguments = ["eval", "--model_type", "onepeace", "--model", "tiny", "--pretrained", "-", "--task", task]
        arguments += ["--dataset", "wds/own", "--dataset_root", str(folder), "--output", str(output), "--quiet"]
        monkeypatch.setattr(sys, "argv", ["clip_benchmark", *arguments, "--num_workers", "0", *options])
        cli.main()
        return json.loads(output.read_text())["metrics"]

    return run


def test_towers_give_the_embedders_vectors(random_folder):
    embedder = onepeace.load(random_folder, device="cpu")
    model, transform, tokenizer = plugin.load(str(random_folder), "-", None, "cpu")
    random = np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)) for i in range(3)]
    texts = ["a dog", "two cats on a mat", "rain"]
    with torch.no_grad():
        images = model.encode_image(torch.stack([transform(picture) for picture in pictures]))
        words = model.encode_text(tokenizer(texts))
    for got, want in ((images, embedder.encode_image(pictures)), (words, embedder.encode_text(texts))):
        torch.testing.assert_close(torch.nn.functional.normalize(got, dim=-1), want, atol=1e-5, rtol=0)


def test_its_command_reaches_the_figures_of_ours(tmp_path, tiny, pictures, evaluated):
    labels = [i % 3 for i in range(len(pictures))]  # some wrong, so that not all is right
    samples = [{"jpg": data, "cls": str(label).encode()} for data, label in zip(pictures, labels, strict=True)]
    folder = write_folder(tmp_path / "classes", samples, classes=NAMES, templates=TEMPLATES)
    got = evaluated(folder, "zeroshot_classification", "--no_amp")
    (tmp_path / "names.json").write_text(json.dumps(NAMES))
    write_shard(tmp_path / "classes.tar", {
        str(i): (data, {"label": NAMES[label]}) for i, (data, label) in enumerate(zip(pictures, labels, strict=True))
    })  # fmt: skip
    recipe = """sets: {own: {protocol: zero_shot, modality: image, shards: classes.tar, classes: names.json,
                             templates: ["a photo of a {}.", "a {}"], at: [1, 5]}}"""
    ours = {row.metric: row.value for row in measure(tiny, recipe_of(tmp_path, recipe))}
    assert (got["acc1"], got["acc5"]) == (ours["top-1 of 5"], ours["top-5 of 5"])
    assert 0 < got["acc1"] < 1

    captions = [[f"a {name}", f"a photo of a {name}"] for name in NAMES]
    captions[0], captions[1] = captions[1], captions[0]
    samples = [{"jpg": d, "txt": "\n".join(c).encode()} for d, c in zip(pictures, captions, strict=True)]
    folder = write_folder(tmp_path / "captions", samples, kind="retrieval")
    got = evaluated(folder, "zeroshot_retrieval", "--no_amp", "--recall_k", "1", "2")
    write_shard(tmp_path / "captions.tar", {
        str(i): (data, {"captions": own}) for i, (data, own) in enumerate(zip(pictures, captions, strict=True))
    })  # fmt: skip
    recipe = """sets: {own: {protocol: retrieval, modality: image, shards: captions.tar, at: [1, 2]}}"""
    ours = {row.metric: row.value for row in measure(tiny, recipe_of(tmp_path, recipe))}
    for k in (1, 2):
        assert got[f"image_retrieval_recall@{k}"] == pytest.approx(ours[f"text to image R@{k}"])
        assert got[f"text_retrieval_recall@{k}"] == pytest.approx(ours[f"image to text R@{k}"])
