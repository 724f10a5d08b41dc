"""The pipeline of transformers on the bundled model and sample files: scores are those of our own `classify`."""

import torch
import transformers
from support.embedding import assert_same

import onepeace.plugins.transformers as plugin

LABELS = ["cat", "dog", "bus", "the sea"]


def scores(results):
    """(n, number of labels), in the order of the labels."""
    rows = []
    for result in results:
        score_of = {row["label"]: row["score"] for row in result}
        rows.append([score_of[label] for label in LABELS])
    return torch.tensor(rows)


def test_zero_shot_image_classification(samples, tiny, tmp_path):
    plugin.OnePeaceModel.from_onepeace("tiny").save_pretrained(tmp_path)
    plugin.OnePeaceProcessor.from_onepeace("tiny").save_pretrained(tmp_path)
    image_paths = [str(samples / "images" / name) for name in ("cat.jpg", "bus.jpg")]

    pipeline = transformers.pipeline("zero-shot-image-classification", str(tmp_path))
    results = pipeline(image_paths, candidate_labels=LABELS, batch_size=2)

    assert type(pipeline.model) is plugin.OnePeaceModel
    expected = tiny.classify(image_paths, LABELS, template="This is a photo of {}.")
    assert_same(scores(results), expected, atol=1e-4)
