"""Vectors: their form and order, and that nothing but the item decides about them."""

import itertools
from functools import partial

import pytest
import torch
from support.embedding import TEXTS, assert_same, assert_unit_rows, varied_texts
from support.sounds import RATE, noise
from torch.nn.functional import cosine_similarity, normalize
from torch.testing import assert_close

from onepeace.embed.encode import Embedded
from onepeace.errors import UserError


@pytest.fixture(params=["text", "image", "audio"])
def encode_and_items(request, model, pictures, sounds):
    """The method of one modality, and items for it."""
    items = {"text": TEXTS, "image": pictures, "audio": sounds}[request.param]
    return getattr(model, f"encode_{request.param}"), items


# Form


def test_vectors_are_unit_rows(encode_and_items, model):
    encode, items = encode_and_items
    vectors = encode(items)

    assert_unit_rows(vectors, len(items))
    assert vectors.shape[1] == model.embed_dim


def test_no_items_give_zero_rows(encode_and_items, model):
    encode, _ = encode_and_items
    assert encode([]).shape == (0, model.embed_dim)

    vectors, failures = encode(iter(()), on_error="skip")
    assert vectors.shape == (0, model.embed_dim)
    assert failures == []


def test_vectors_can_be_trained_on(model):
    weight = torch.ones(model.embed_dim, requires_grad=True)
    vectors = model.encode_text(["a"] * 300)  # more rows than the first block has
    (vectors * weight).sum().backward()
    assert weight.grad.isfinite().all()


# What shares the batch


def test_vector_ignores_batch_mates(encode_and_items):
    encode, items = encode_and_items
    alone = torch.cat([encode([item]) for item in items])

    assert_same(encode(items), alone)
    assert_same(encode(items[::-1], batch_size=3), alone.flip(0))


def test_order_is_kept_over_many_windows(model):
    """More items than may wait for company, of all lengths: every row has to find back to its place."""
    texts = varied_texts(560)
    vectors = model.encode_text(iter(texts))

    for index in (0, 13, 255, 256, 257, 511, 559):
        (alone,) = model.encode_text([texts[index]])
        assert_same(vectors[index], alone)


# Failures


@pytest.fixture
def mixed(tmp_path, samples):
    """Items of which the second and the fifth are broken files."""
    empty = tmp_path / "empty.jpg"
    empty.touch()
    no_sound = tmp_path / "noise.ogg"
    no_sound.write_bytes(b"no sound")
    return [samples / "images/dog.jpg", empty, samples / "sounds/dog.ogg", "a dog", no_sound]


def test_failure_is_raised_with_the_name_of_the_item(model, mixed):
    with pytest.raises(UserError, match=r"empty\.jpg: .*empty"):
        model.encode(mixed)


def test_failures_are_returned_on_skip(model, mixed):
    vectors, failures = model.encode(mixed, on_error="skip", batch_size=2)

    assert_same(vectors, model.encode([mixed[0], mixed[2], mixed[3]]))
    assert [failure.index for failure in failures] == [1, 4]
    for failure in failures:
        assert isinstance(failure, Embedded)
        assert failure.name == str(mixed[failure.index])
        assert failure.reason
        assert failure.name not in failure.reason
        assert "\n" not in failure.reason


def test_unforeseen_error_of_a_decoder_names_the_item(model, monkeypatch):
    def stumble(item):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(model.processors["image"], "decode", stumble)

    with pytest.raises(UserError, match=r"a\.jpg: ZeroDivisionError: division by zero"):
        model.encode_image(["a.jpg"])


@pytest.fixture
def nan_of_longest(model, monkeypatch):
    """The model gives NaN for the longest text of a batch."""
    forward = model.module.forward

    def break_longest(inputs):
        vectors = forward(inputs)["text"].clone()
        lengths = (inputs["text"]["ids"] != 1).sum(dim=1)
        vectors[lengths.argmax()] = torch.nan
        return {"text": vectors}

    monkeypatch.setattr(model.module, "forward", break_longest)


def test_nan_is_a_failure_of_its_item_alone(model, nan_of_longest):
    vectors, failures = model.encode_text(["a", "the longest text", "b"], on_error="skip")

    assert len(vectors) == 2
    assert vectors.isfinite().all()
    assert [failure.index for failure in failures] == [1]


# Mixes


def unit_sum(vectors):
    return normalize(vectors.sum(dim=0), dim=0)


def test_composed_item_is_the_renormalised_sum(model, pictures, sounds):
    parts = {"image": pictures[0], "audio": sounds[0], "text": "a dog"}
    vectors = model.encode(list(parts.values()))

    (composed,) = model.encode([parts])

    assert_same(composed, unit_sum(vectors))


# Long sounds


def cut(sound, start, end):
    """The part of a sound between two seconds."""
    samples, rate = sound
    return samples[round(start * rate) : round(end * rate)], rate


def windows_of(model, sound, **options):
    results = model.stream([sound], long="windows", **options)
    return next(results).windows


@pytest.mark.parametrize(
    ("options", "starts", "ends"),
    [
        ({"window": 2, "hop": 1.5}, [0, 1.5, 3], [2, 3.5, 5]),
        ({}, [0, 2, 4], [2, 4, 5]),  # the model's length
    ],
)
def test_windows_have_their_times(model, long_sound, options, starts, ends):
    windows = windows_of(model, long_sound, **options)

    assert windows.starts == starts
    assert windows.ends == ends
    pieces = map(partial(cut, long_sound), starts, ends)
    assert_same(windows.vectors, model.encode_audio(pieces))


def test_vector_of_a_sound_is_the_mean_of_its_windows(model, long_sound):
    windows = windows_of(model, long_sound)
    (vector,) = model.encode([long_sound], long="windows")

    assert_same(vector, unit_sum(windows.vectors))


def test_long_sound_counts_as_one_part(model, pictures, long_sound):
    parts = model.encode([pictures[0], long_sound], long="windows")
    item = {"image": pictures[0], "audio": long_sound}
    (composed,) = model.encode([item], long="windows")

    assert_same(composed, unit_sum(parts))


def test_sound_that_breaks_off_late_fails_alone(model, sounds, monkeypatch):
    """The end of a long sound is decoded after its first windows were computed."""
    long_sound = (noise(60 * RATE), RATE)
    windows = model.processors["audio"].windows

    def break_off(item, window, hop):
        pieces = windows(item, window, hop)
        yield from itertools.islice(pieces, 80)
        if item is long_sound:
            raise UserError("cut off")
        yield from pieces

    monkeypatch.setattr(model.processors["audio"], "windows", break_off)
    options = {"long": "windows", "window": 0.5, "batch_size": 4}

    three = [sounds[0], long_sound, sounds[1]]
    vectors, (failure,) = model.encode_audio(three, on_error="skip", **options)

    assert_same(vectors, model.encode_audio(sounds[:2], **options))
    assert failure.index == 1
    assert failure.reason == "cut off"


# Comparing and classifying


def test_similarity_is_the_cosine(model):
    a = torch.randn(3, 16)
    b = torch.randn(2, 16)
    expected = cosine_similarity(a[:, None], b[None], dim=2)

    assert_same(model.similarity(a, b), expected)
    assert_same(model.similarity(a.numpy(), b), expected)
    assert_same(model.similarity(a[0], b), expected[:1])
    assert model.similarity(a[:0], b).shape == (0, 2)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (torch.ones(2, 8), r"\(2, 8\)"),
        (torch.ones(2, 3, 16), r"\(2, 3, 16\)"),
        (["dog.jpg"], "encode"),
        (torch.full((2, 16), torch.nan), "finite"),
    ],
)
def test_similarity_refuses_what_are_no_vectors(model, second, words):
    with pytest.raises(UserError, match=f"second .*{words}"):
        model.similarity(torch.ones(3, 16), second)


def test_classify_gives_probabilities_of_prototypes(model, pictures):
    labels = ["dog", "cat {}", "sea"]
    sentences = [f"a photo of a {label}" for label in labels]

    probabilities = model.classify(pictures, labels, template=["a photo of a {}", "{}"])

    prototypes = model.encode_text(labels) + model.encode_text(sentences)
    cosines = model.similarity(model.encode_image(pictures), prototypes)
    assert_same(probabilities, (cosines * model.logit_scale).softmax(dim=1))


def test_template_suits_the_modality(model, pictures, sounds):
    composed = {"audio": sounds[0], "text": "a"}
    items = [pictures[0], sounds[0], "a bark", composed]
    templates = ["a photo of a {}", "the sound of a {}", "{}", "the sound of a {}"]

    probabilities = model.classify(items, ["dog", "sea"])

    for row, item, template in zip(probabilities, items, templates, strict=True):
        (expected,) = model.classify([item], ["dog", "sea"], template=template)
        assert_same(row, expected)


@pytest.mark.parametrize(
    ("labels", "template", "words"),
    [
        ([], "{}", "at least two"),
        (["a", "a"], "{}", "at least two"),  # each file would have 1.0
        (["a", "b"], [], "one template"),
        (["a", "b"], "a photo", "no {}"),
        ("dog", "{}", "labels .*list"),
    ],
)
def test_classify_refuses_labels_and_templates(model, pictures, labels, template, words):
    with pytest.raises(UserError, match=words):
        model.classify(pictures, labels, template=template)


def test_predict_gives_the_scores_of_the_head(classifier, side_by_side, sounds):
    side_by_side(2)
    samples = [classifier.processors["audio"].decode(sound) for sound in sounds]
    inputs = classifier.inputs("audio", samples)
    logits = classifier.module.predict({"audio": inputs})

    results = classifier.predict(sounds, top=3)

    for result, scores in zip(results, logits.softmax(dim=1), strict=True):
        assert len(result["labels"]) == 3
        for best in result["labels"]:
            number = int(best["label"])
            assert_same(best["score"], scores[number].item())


def test_model_without_projection_has_no_vectors(classifier, sounds):
    with pytest.raises(UserError, match="no projection"):
        classifier.encode_audio(sounds)


# Token features

TEXT = "A dog,  barking"


@pytest.fixture(scope="module")
def item(pictures, sounds):
    return {"image": pictures[0], "text": TEXT, "audio": sounds[0]}


@pytest.fixture(scope="module")
def features(model, item):
    return model.features(item)


@torch.no_grad()
def test_features_are_those_of_one_joint_pass(model, features, item):
    inputs = {}
    for modality, value in item.items():
        sample = model.processors[modality].decode(value)
        inputs[modality] = model.inputs(modality, [sample])

    for modality, (tokens,) in model.module.features(inputs).items():
        assert_same(features[modality].cls, tokens[0])
        assert_same(features[modality].features, tokens[1:])
    alone = model.features({"image": item["image"]})
    difference = alone["image"].features - features["image"].features
    assert difference.abs().max() > 1e-3


def test_features_of_texts_cover_characters(model, features):
    prepared = model.processors["text"].prepare(TEXT)
    *spans, end = features["text"].positions.tolist()

    assert features["text"].unit == "character"
    covered = "".join(prepared[start:stop] for start, stop in spans)
    assert covered.replace(" ", "") == prepared.replace(" ", "")
    assert end == [len(prepared), len(prepared)]


def test_features_of_sounds_cover_seconds(features):
    starts, ends = features["audio"].positions.T

    assert features["audio"].unit == "second"
    assert starts[0] == 0
    assert_close(starts[1:], ends[:-1])
    assert ends[-1] == pytest.approx(0.6, abs=0.08)
    assert len(starts) == len(features["audio"].features)
