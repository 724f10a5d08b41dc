"""Pipelines of transformers on the bundled model and the sample files: scores are those of our own `classify`."""

import pytest
import torch
import transformers
from support.embedding import assert_same

import onepeace
import onepeace.plugins.transformers as plugin
from onepeace.embed.embedder import Embedder

LABELS = ["cat", "dog", "bus", "the sea"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hf") / "tiny"
    plugin.OnePeaceModel.from_onepeace("tiny").save_pretrained(path)
    plugin.OnePeaceProcessor.from_onepeace("tiny").save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def embedder():
    return onepeace.load("tiny", device="cpu", dtype="float32")


@pytest.fixture
def image_paths(samples):
    return [str(samples / "images" / name) for name in ("cat.jpg", "bus.jpg")]


def scores(results):
    """(n, number of labels), in the order of the labels."""
    rows = []
    for result in results:
        score_of = {row["label"]: row["score"] for row in result}
        rows.append([score_of[label] for label in LABELS])
    return torch.tensor(rows)


def test_zero_shot_image_classification(folder, embedder, image_paths):
    pipeline = transformers.pipeline("zero-shot-image-classification", folder)
    results = pipeline(image_paths, candidate_labels=LABELS, batch_size=2)

    assert type(pipeline.model) is plugin.OnePeaceModel
    expected = embedder.classify(image_paths, LABELS, template="This is a photo of {}.")
    assert_same(scores(results), expected, atol=1e-4)


def random_classifier(cls, folder):
    model = cls.from_pretrained(folder, num_labels=len(LABELS))
    model.config.id2label = dict(enumerate(LABELS))
    torch.nn.init.normal_(model.onepeace.heads["classifier"].out.weight)
    return model


def our_scores(model, modality, embedder, paths):
    processor = embedder.processors[modality]
    inputs = Embedder(model.onepeace, {modality: processor}).inputs(
        modality, [processor.decode(path) for path in paths]
    )
    with torch.inference_mode():
        return model.onepeace.predict({modality: inputs}).softmax(dim=1)


def test_image_classification(folder, embedder, image_paths):
    model = random_classifier(plugin.OnePeaceForImageClassification, folder)
    processor = plugin.OnePeaceImageProcessor.from_pretrained(folder)
    pipeline = transformers.pipeline("image-classification", model, image_processor=processor)

    results = pipeline(image_paths, batch_size=2, top_k=len(LABELS))

    assert_same(scores(results), our_scores(model, "image", embedder, image_paths), atol=1e-4)
    assert scores(results).std() > 0.01
