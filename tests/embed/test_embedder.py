"""Vectors: their form and order, and that nothing but the item decides about them."""

import itertools

import numpy as np
import pytest
import torch
from support.embedding import RATE, TEXTS, assert_same
from support.random_model import save_random_model
from torch.testing import assert_close

import onepeace
from onepeace.embed.stream import Embedded
from onepeace.errors import UserError

# Form


def test_every_encode_returns_unit_rows(model, pictures, sounds):
    for vectors, count in [
        (model.encode_text(TEXTS), len(TEXTS)),
        (model.encode_image(pictures), len(pictures)),
        (model.encode_audio(sounds), len(sounds)),
        (model.encode([*pictures, *sounds, *TEXTS]), len(pictures) + len(sounds) + len(TEXTS)),
    ]:
        assert vectors.shape == (count, model.embed_dim)
        assert vectors.dtype == torch.float32
        assert vectors.device.type == "cpu"
        assert_close(vectors.norm(dim=1), torch.ones(count), atol=1e-6, rtol=0)


def test_encode_empty_list_returns_zero_rows(model):
    for encode in (model.encode, model.encode_text, model.encode_image, model.encode_audio):
        assert encode([]).shape == (0, model.embed_dim)
        vectors, failures = encode(iter(()), on_error="skip")
        assert vectors.shape == (0, model.embed_dim)
        assert failures == []
    assert model.classify([], ["a", "b"]).shape == (0, 2)


def test_vectors_can_be_trained_on(model):
    weight = torch.ones(model.embed_dim, requires_grad=True)
    (model.encode_text(["a"] * 300) * weight).sum().backward()  # more rows than the first block has
    assert weight.grad.isfinite().all()


def test_repeated_calls_are_equal_to_the_bit(model, pictures, sounds):
    items = [*pictures, *sounds, *TEXTS]
    assert torch.equal(model.encode(items), model.encode(items))


# What shares the batch


def test_vector_ignores_batch_mates(model, pictures, sounds):
    for encode, items in [(model.encode_text, TEXTS), (model.encode_image, pictures), (model.encode_audio, sounds)]:
        alone = torch.cat([encode([item]) for item in items])
        assert_same(encode(items), alone)
        assert_same(encode(items[::-1], batch_size=3), alone.flip(0))


def test_order_is_kept_over_many_windows(model):
    """More items than may wait for company, of all lengths: every row has to find back to its place."""
    texts = [f"{'word ' * (i * 7 % 13)}{i}" for i in range(560)]
    vectors = model.encode_text(iter(texts))
    for index in (0, 13, 255, 256, 257, 511, 559):
        assert_same(vectors[index : index + 1], model.encode_text([texts[index]]))


# Failures


@pytest.fixture
def mixed(tmp_path, samples):
    """Files of which the second and the fifth are broken."""
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "noise.ogg").write_bytes(b"no sound")
    images, sounds = samples / "images", samples / "sounds"
    return [images / "dog.jpg", tmp_path / "empty.jpg", sounds / "dog.ogg", "a dog", tmp_path / "noise.ogg"]


def test_raise_names_the_first_that_fails_and_skip_returns_the_others(model, mixed):
    with pytest.raises(UserError, match=r"empty\.jpg: .*empty"):
        model.encode(mixed)
    good = [mixed[0], mixed[2], mixed[3]]
    vectors, failures = model.encode(mixed, on_error="skip", batch_size=2)
    whole, none = model.encode(good, on_error="skip")
    assert_same(vectors, whole)
    assert none == []
    assert [(f.index, f.name) for f in failures] == [(1, str(mixed[1])), (4, str(mixed[4]))]
    for failure in failures:
        assert isinstance(failure, Embedded)
        assert failure.reason
        assert failure.name not in failure.reason
        assert "\n" not in failure.reason


def test_unforeseen_error_of_a_decoder_names_the_item(model, monkeypatch):
    def stumble(item):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(model.processors["image"], "decode", stumble)
    with pytest.raises(UserError, match=r"a\.jpg: ZeroDivisionError: division by zero"):
        model.encode_image(["a.jpg"])


def test_nan_of_the_model_names_the_item(model, monkeypatch):
    forward = model.module.forward

    def break_longest(inputs):
        vectors = forward(inputs)["text"].clone()
        vectors[(inputs["text"]["ids"] != 1).sum(dim=1).argmax()] = torch.nan
        return {"text": vectors}

    expected = model.encode_text(["a", "b"])
    monkeypatch.setattr(model.module, "forward", break_longest)
    with pytest.raises(UserError, match="the longest text: the model gives NaN for it; its weights may be damaged"):
        model.encode_text(["a", "the longest text", "b"])
    vectors, failures = model.encode_text(["a", "the longest text", "b"], on_error="skip")
    assert_same(vectors, expected)
    assert [failure.index for failure in failures] == [1]


def test_too_large_a_batch_of_a_head_says_what_to_do(tmp_path, sounds, monkeypatch):
    head = {"kind": "classifier", "on": "audio", "num_classes": 3}
    own = onepeace.load(save_random_model(tmp_path / "head", ("audio",), projections=(), heads={"classifier": head}))

    def overflow(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(own.module, "apply_head", overflow)
    with pytest.raises(UserError, match="no memory for 2 items at once; lower batch_size"):
        own.predict(sounds[:2])


# Mixes


def test_composed_item_is_the_renormalised_sum(model, pictures, sounds):
    parts = {"image": pictures[0], "audio": sounds[0], "text": "a dog"}
    image, audio, text = model.encode(list(parts.values()))
    assert_same(model.encode([parts])[0], torch.nn.functional.normalize(image + audio + text, dim=0))


def test_composed_and_plain_items_mix(model, pictures, sounds):
    composed = {"image": pictures[1], "audio": sounds[3]}
    items = ["a", composed, pictures[1], composed, sounds[3], {"text": "photo.jpg"}]
    together = model.encode(items)
    assert_same(together, torch.cat([model.encode([item]) for item in items]))
    assert_same(together[5:], model.encode_text(["photo.jpg"]))
    assert_same(together[:1], model.encode_text(["a"]))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"text": "a", "smell": "b"}, "not 'smell'"),
        ({}, "cannot tell"),
        ({"image": "nothing.jpg", "text": "a"}, r"item 0: nothing\.jpg: no such file"),
    ],
)
def test_wrong_composed_items_are_errors(model, item, message):
    with pytest.raises(UserError, match=message):
        model.encode([item])


# Long sounds


def piece(sound, start, end):
    return sound[0][round(start * RATE) : round(end * RATE)], RATE


def test_truncate_hears_the_beginning_only(model, long_sound):
    assert_same(model.encode_audio([long_sound]), model.encode_audio([piece(long_sound, 0, 2)]))


def test_windows_say_where_they_are(model, long_sound, sounds):
    options = {"long": "windows", "window": 2, "hop": 1.5}
    long, short = windows = [result.windows for result in model.stream([long_sound, sounds[0]], **options)]
    means = [torch.nn.functional.normalize(each.vectors.mean(dim=0), dim=0) for each in windows]
    assert_same(model.encode([long_sound, sounds[0]], **options), torch.stack(means))
    (own,) = model.stream([long_sound], long="windows")
    assert own.windows.starts == [0, 2, 4]  # the model's length by default
    assert (long.starts, long.ends) == ([0, 1.5, 3], [2, 3.5, 5])
    assert (short.starts, short.ends) == ([0], [0.6])
    for row, start, end in zip(long.vectors, long.starts, long.ends, strict=True):
        assert_same(row[None], model.encode_audio([piece(long_sound, start, end)]))


def test_sound_that_breaks_off_late_fails_alone(model, sounds, monkeypatch):
    """The end of a long sound is decoded after its first windows were computed."""
    windows = model.processors["audio"].windows

    def break_off(item, window, hop):
        every = windows(item, window, hop)
        yield from itertools.islice(every, 80)
        if len(item[0]) > 50 * RATE:
            raise UserError("cut off after 80 windows")
        yield from every

    long = (np.random.default_rng(2).normal(0, 0.1, 60 * RATE).astype(np.float32), RATE)
    monkeypatch.setattr(model.processors["audio"], "windows", break_off)
    options = {"long": "windows", "window": 0.5, "batch_size": 4}
    given, failures = model.encode_audio([sounds[0], long, sounds[1]], on_error="skip", **options)
    assert_same(given, model.encode_audio([sounds[0], sounds[1]], **options))
    assert [(f.index, f.reason) for f in failures] == [(1, "cut off after 80 windows")]
    with pytest.raises(UserError, match="cut off after 80 windows"):
        model.encode_audio([long], **options)


# Comparing and classifying


def test_similarity_is_the_cosine(model):
    a, b = torch.randn(3, 16), torch.randn(2, 16)
    expected = [[torch.nn.functional.cosine_similarity(x, y, dim=0).item() for y in b] for x in a]
    assert_same(model.similarity(a, b), torch.tensor(expected))
    assert_same(model.similarity(a.numpy(), b), torch.tensor(expected))
    assert model.similarity(a[0], b).shape == (1, 2)
    assert model.similarity(a[:0], b).shape == (0, 2)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (torch.ones(2, 8), r"second .* is \(2, 8\)"),
        (torch.ones(2, 3, 16), r"second .* is \(2, 3, 16\)"),
        (["dog.jpg"], "second .*encode"),
        (torch.tensor([[1.0] * 16, [float("nan")] * 16]), "vector 1 of the second .*finite"),
    ],
)
def test_similarity_of_what_are_no_vectors_says_so(model, second, message):
    with pytest.raises(UserError, match=message):
        model.similarity(torch.ones(3, 16), second)


def test_classify_gives_probabilities_of_the_nearest_label(model, pictures):
    labels = ["dog", "cat {}", "sea"]
    probabilities = model.classify(pictures, labels, template=["a photo of a {}", "{}"])
    prototypes = torch.stack([model.encode_text([f"a photo of a {label}", label]).mean(dim=0) for label in labels])
    logits = model.similarity(model.encode_image(pictures), prototypes) * model.module.logit_scale.exp()
    assert_same(probabilities, logits.softmax(dim=1).detach())
    assert_same(probabilities.sum(dim=1), torch.ones(len(pictures)))


def test_labels_stand_in_a_sentence_that_suits_the_item(model, pictures, sounds):
    labels, composed = ["dog", "sea"], {"audio": sounds[0], "text": "a"}
    items = [pictures[0], sounds[0], "a bark", composed]
    templates = ["a photo of a {}", "the sound of a {}", "{}", "the sound of a {}"]
    alone = [model.classify([item], labels, template=one) for item, one in zip(items, templates, strict=True)]
    assert_same(model.classify(items, labels), torch.cat(alone))


def test_a_classifier_of_the_models_own_has_no_vectors(tmp_path, side_by_side, sounds):
    classifier = {"kind": "classifier", "on": "audio", "num_classes": 3}
    folder = save_random_model(tmp_path / "head", ("audio",), projections=(), heads={"classifier": classifier})
    own = onepeace.load(folder, device="cpu")
    side_by_side(2)
    found = own.predict(sounds, top=3)
    with pytest.raises(UserError, match=r"x\.wav: no such file"):
        own.predict([*sounds, "x.wav"])
    batch = own.processors["audio"].collate([own.processors["audio"].decode(sounds[2])])
    chances = own.module.predict({"audio": batch}).softmax(dim=1)[0].tolist()
    for one in found[2]["labels"]:
        assert one["score"] == pytest.approx(chances[int(one["label"])], abs=1e-5)
    with pytest.raises(UserError, match="no projection"):
        own.encode_audio(sounds)


def test_classify_refuses_what_makes_no_sense(model, pictures):
    for labels, template, message in [
        ([], "{}", "at least one label"),
        (["a", " "], "{}", "no label may be empty"),
        (["a"], [], "one template"),
        (["a"], "a photo", "no {}"),
        ("dog", "{}", "labels should be a list"),
        (None, "{}", "labels should be a list"),
    ]:
        with pytest.raises(UserError, match=message):
            model.classify(pictures, labels, template=template)


# Token features


def test_features_are_those_of_one_joint_pass(model, pictures, sounds):
    item = {"image": pictures[0], "text": "A dog,  barking", "audio": sounds[0]}
    features = model.features(item)
    inputs = {key: model.processors[key].collate([model.processors[key].decode(value)]) for key, value in item.items()}
    for key, tokens in model.module.features(inputs).items():
        assert_same(torch.cat([features[key].cls[None], features[key].features]), tokens[0].detach())
    alone = model.features({"image": pictures[0]})["image"]
    assert (alone.features - features["image"].features).abs().max() > 1e-3


def test_features_say_what_each_token_covers(model, pictures, sounds):
    text = "A dog,  barking"
    features = model.features({"image": pictures[0], "text": text, "audio": sounds[0]})
    assert features["image"].positions.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert features["image"].unit == "patch"
    spans = features["text"].positions.tolist()
    assert features["text"].unit == "character"
    text = model.processors["text"].prepare(text)
    assert "".join(text[start:end] for start, end in spans).replace(" ", "") == text.replace(" ", "")
    assert spans[-1] == [len(text), len(text)]
    starts, ends = features["audio"].positions.T
    assert features["audio"].unit == "second"
    assert starts[0] == 0
    assert_close(starts[1:], ends[:-1])
    assert 0.6 - 0.08 < ends[-1] < 0.6 + 0.08
    for tokens in features.values():
        assert len(tokens.positions) == len(tokens.features)


def test_features_refuse_what_is_no_dictionary(model):
    for item in ("a", {}, {"smell": 1}):
        with pytest.raises(UserError):
            model.features(item)
