"""Pipelines of transformers on the bundled model and the sample files: scores are those of our own `classify`."""

import pytest
import torch
import transformers
from PIL import Image

import onepeace
import onepeace.plugins.transformers as plugin
from onepeace.embed.embedder import Embedder

LABELS = ["cat", "dog", "bus", "the sea"]
FILES = {"image": ["images/cat.jpg", "images/bus.jpg"], "audio": ["sounds/cat.ogg", "sounds/sea.ogg"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hf") / "tiny"
    plugin.OnePeaceModel.from_onepeace("tiny").save_pretrained(path)
    plugin.OnePeaceProcessor.from_onepeace("tiny").save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def own():
    return onepeace.load("tiny", device="cpu", dtype="float32")


def files_of(key, samples):
    return [str(samples / name) for name in FILES[key]]


def waveforms(own, samples):
    """As pipelines want them: mono, at the model's rate, as read from the files."""
    return [own.processors["audio"].load(path).numpy() for path in files_of("audio", samples)]


def scores(results, labels=LABELS):
    """(n, number of labels) of what a pipeline gives, in the order of the labels."""
    found = [{row["label"]: row["score"] for row in result} for result in results]
    return torch.tensor([[one[label] for label in labels] for one in found])


def close(got, want):
    assert tuple(got.shape) == tuple(want.shape)
    assert torch.isfinite(want).all()
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


def test_zero_shot_image_classification(folder, own, samples):
    pipeline = transformers.pipeline("zero-shot-image-classification", folder)
    assert type(pipeline.model) is plugin.OnePeaceModel
    files = files_of("image", samples)
    got = pipeline(files, candidate_labels=LABELS, batch_size=2)
    close(scores(got), own.classify(files, LABELS, template="This is a photo of {}."))


def test_zero_shot_audio_classification(folder, own, samples):
    pipeline = transformers.pipeline("zero-shot-audio-classification", folder)
    got = [pipeline(sound, candidate_labels=LABELS) for sound in waveforms(own, samples)]
    close(scores(got), own.classify(files_of("audio", samples), LABELS, template="This is a sound of {}."))


def test_features_of_texts_and_pictures(folder, own, samples):
    texts, files = ["a dog", "waves on a beach, and a lot of other things"], files_of("image", samples)
    got = transformers.pipeline("feature-extraction", folder)(texts, batch_size=1)
    close(torch.tensor(got)[:, 0], own.encode_text(texts))
    got = transformers.pipeline("image-feature-extraction", folder)(files)
    close(torch.tensor(got)[:, 0], own.encode_image(files))
    tower = plugin.OnePeaceVisionModel.from_pretrained(folder)
    pipeline = transformers.pipeline(
        "image-feature-extraction", tower, image_processor=plugin.OnePeaceImageProcessor.from_pretrained(folder)
    )
    tokens = own.features({"image": Image.open(files[0])})["image"]
    close(torch.tensor(pipeline(files[0]))[0, 1:], tokens.features)
    close(torch.tensor(pipeline(files[0], pool=True))[0], tokens.cls)


@pytest.mark.parametrize("key", FILES)
def test_classification_with_a_head(folder, own, samples, key):
    cls = {"image": plugin.OnePeaceForImageClassification, "audio": plugin.OnePeaceForAudioClassification}[key]
    model = cls.from_pretrained(folder, num_labels=len(LABELS))
    model.config.id2label = dict(enumerate(LABELS))
    torch.nn.init.normal_(model.onepeace.heads["classifier"].out.weight)
    part = "image_processor" if key == "image" else "feature_extractor"
    processor = getattr(plugin.OnePeaceProcessor.from_pretrained(folder), part)
    pipeline = transformers.pipeline(f"{key}-classification", model, **{part: processor})
    files = files_of(key, samples)
    given = files if key == "image" else waveforms(own, samples)
    embedder = Embedder(model.onepeace, {key: own.processors[key]})
    with torch.inference_mode():
        inputs = {key: embedder.inputs(key, [own.processors[key].decode(file) for file in files])}
        want = model.onepeace.predict(inputs).softmax(dim=1)
    assert want.std() > 0.01
    close(scores(pipeline(given, batch_size=2, top_k=len(LABELS))), want)
