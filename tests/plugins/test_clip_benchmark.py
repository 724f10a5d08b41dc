"""The CLIP_benchmark loader, against its own command: the figures are those of `onepeace evaluate`."""

import json
import pickle
import sys

import pytest
from support.clip_benchmark_folder import write_folder
from support.evaluation import measure, recipe_of
from support.small_shards import write_shard

from onepeace.plugins import clip_benchmark as plugin

pytest.importorskip("clip_benchmark")

NAMES = ("dog", "cat", "bus", "sunflower", "clock")


@pytest.fixture
def photos(samples):
    return [(samples / f"images/{name}.jpg").read_bytes() for name in NAMES]


@pytest.fixture
def metrics_of(monkeypatch, tmp_path):
    """Runs CLIP_benchmark's command on a folder."""
    from clip_benchmark import cli

    for _ in range(2):  # a second time changes nothing
        plugin.register()

    def run(folder, *options):
        output = tmp_path / "result.json"
        dataset = ["--dataset", "wds/own", "--dataset_root", str(folder), "--num_workers", "0"]
        model = ["--model_type", "onepeace", "--model", "tiny", "--pretrained", "-", "--no_amp"]
        command = [
            "clip_benchmark",
            "eval",
            *model,
            *dataset,
            "--output",
            str(output),
            "--quiet",
            *options,
        ]
        monkeypatch.setattr(sys, "argv", command)
        cli.main()
        return json.loads(output.read_text())["metrics"]

    return run


def our_figures(embedder, root, recipe):
    return {row.metric: row.value for row in measure(embedder, recipe_of(root, recipe))}


def test_figures_of_zero_shot_classification(tmp_path, tiny, photos, metrics_of):
    labels = [0, 1, 2, 0, 1]  # wrong for the last two
    their_samples = []
    our_samples = {}
    for key, (photo, label) in enumerate(zip(photos, labels, strict=True)):
        their_samples.append({"jpg": photo, "cls": str(label).encode()})
        our_samples[str(key)] = (photo, {"label": NAMES[label]})
    templates = ("a photo of a {c}.", "a {c}")
    folder = write_folder(tmp_path / "classes", their_samples, classes=NAMES, templates=templates)
    write_shard(tmp_path / "classes.tar", our_samples)
    (tmp_path / "names.json").write_text(json.dumps(NAMES))
    recipe = """sets: {own: {protocol: zero_shot, modality: image, shards: classes.tar, classes: names.json,
                             templates: ["a photo of a {}.", "a {}"], at: [1, 5]}}"""

    metrics = metrics_of(folder, "--task", "zeroshot_classification")
    figures = our_figures(tiny, tmp_path, recipe)

    assert metrics["acc1"] == figures["top-1 of 5"]
    assert metrics["acc5"] == figures["top-5 of 5"]
    assert 0 < metrics["acc1"] < 1


def test_figures_of_retrieval(tmp_path, tiny, photos, metrics_of):
    caption_names = ["cat", "dog", *NAMES[2:]]  # wrong for the first two
    their_samples = []
    our_samples = {}
    for key, (photo, name) in enumerate(zip(photos, caption_names, strict=True)):
        captions = [f"a {name}", f"a photo of a {name}"]
        their_samples.append({"jpg": photo, "txt": "\n".join(captions).encode()})
        our_samples[str(key)] = (photo, {"captions": captions})
    folder = write_folder(tmp_path / "captions", their_samples, dataset_type="retrieval")
    write_shard(tmp_path / "captions.tar", our_samples)
    recipe = "sets: {own: {protocol: retrieval, modality: image, shards: captions.tar, at: [1, 2]}}"

    metrics = metrics_of(folder, "--task", "zeroshot_retrieval", "--recall_k", "1", "2")
    figures = our_figures(tiny, tmp_path, recipe)

    for k in (1, 2):
        assert metrics[f"image_retrieval_recall@{k}"] == pytest.approx(figures[f"text to image R@{k}"])
        assert metrics[f"text_retrieval_recall@{k}"] == pytest.approx(figures[f"image to text R@{k}"])


class Touch:
    """What writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return type(self.path).touch, (self.path,)


def test_nothing_in_a_shard_is_executed(tmp_path, photos, metrics_of):
    trace = tmp_path / "executed"
    pickled = dict.fromkeys(("pkl", "pickle", "pyd"), pickle.dumps(Touch(trace)))
    folder = write_folder(
        tmp_path / "classes", [{"jpg": photos[0], "cls": b"0", **pickled}], classes=NAMES, templates=["a {c}"]
    )

    assert metrics_of(folder, "--task", "zeroshot_classification")["acc5"] == 1
    assert not trace.exists()
