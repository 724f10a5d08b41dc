"""`onepeace.load_generator` and what its model answers: typed, in order, each answer from its own item alone."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import onepeace
from onepeace.errors import UserError
from onepeace.generative.tasks import Choice, Task, Text

CANDIDATES = ["a dog", "a bus", "the sea", "yes"]


@pytest.fixture(scope="module")
def ask(generator):
    """Asks for the answer of one item."""

    def answer(task, **item):
        (only_answer,) = generator.ask(task, [item])
        return only_answer

    return answer


def assert_same(answer, expected):
    """Equal answers, but for rounding of scores."""
    assert type(answer) is type(expected)
    assert answer.score == pytest.approx(expected.score, abs=1e-4)
    assert answer.confidence == pytest.approx(expected.confidence, abs=1e-4)
    for name in ("text", "box", "choice", "objects"):
        assert getattr(answer, name, None) == getattr(expected, name, None)


def test_captions_alone_as_together(generator, ask, images):
    together = generator.caption(images, batch_size=3)

    assert len({answer.text for answer in together}) > 1
    for image, answer in zip(images, together, strict=True):
        assert isinstance(answer, Text)
        assert answer.text == answer.text.strip()
        assert 0 < answer.confidence < 1
        assert_same(ask("caption", image=image), answer)


@pytest.fixture(scope="module")
def red_strip():
    return Image.new("RGB", (200, 20), "red")


def test_boxes_grow_with_the_picture(generator, red_strip):
    enlarged = red_strip.resize((400, 40))
    small, large = generator.ground([red_strip, enlarged], "the bus")
    assert large.box == pytest.approx([2 * corner for corner in small.box])


def test_region_is_described(ask, images):
    box = np.array([10, 20, 100, 110], dtype=np.float32)
    from_array = ask("describe", image=images[0], box=box)
    from_list = ask("describe", image=images[0], box=[10, 20, 100, 110])
    elsewhere = ask("describe", image=images[0], box=[200, 100, 400, 250])
    assert from_list == from_array
    assert elsewhere.score != from_array.score


@pytest.mark.parametrize(
    "box",
    [
        [1, 2],
        [0, 0, float("nan"), 9],
        [9, 0, 3, 9],
    ],
)
def test_region_that_is_no_box(ask, images, box):
    with pytest.raises(UserError, match=r"cat\.jpg: .*x0, y0, x1, y1"):
        ask("describe", image=images[0], box=box)


def test_choices_are_probabilities(generator, images):
    for answer in generator.answer(images, "what is it?", candidates=CANDIDATES):
        assert isinstance(answer, Choice)
        assert list(answer.scores) == CANDIDATES
        assert answer.score == max(answer.scores.values())
        assert answer.score == answer.scores[answer.choice]
        probabilities = np.exp(list(answer.scores.values()))
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert answer.confidence == pytest.approx(np.exp(answer.score), abs=1e-5)


@pytest.fixture
def images_with_broken(images, tmp_path):
    """Between two pictures half of one, and one that is missing."""
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(images[0].read_bytes()[:2000])
    return [images[0], broken, tmp_path / "missing.png", images[1]]


def test_broken_files_are_named(generator, ask, images_with_broken):
    items = [{"image": image} for image in images_with_broken]
    first, broken, missing, last = generator.stream("caption", items)

    assert_same(first.answer, ask("caption", **items[0]))
    assert_same(last.answer, ask("caption", **items[3]))
    for index, failure in ((1, broken), (2, missing)):
        assert failure.index == index
        assert failure.name == str(images_with_broken[index])
        assert failure.name not in failure.reason
        assert "\n" not in failure.reason


def test_item_that_the_model_refuses(generator, ask, images, monkeypatch):
    """The items of its batch come out."""
    encode = generator.reader.encode

    def encode_short(ids, modality, samples):
        if max(len(prompt) for prompt in ids) > 20:
            raise UserError("too long for this model")
        return encode(ids, modality, samples)

    monkeypatch.setattr(generator.reader, "encode", encode_short)
    items = [
        {"image": images[0], "text": "what?"},
        {"image": images[1], "text": "what is it " * 9},
        {"image": images[2], "text": "who?"},
    ]
    first, failure, last = generator.stream("answer", items)

    assert failure.index == 1
    assert failure.name == str(images[1])
    assert failure.reason == "too long for this model"
    assert_same(first.answer, ask("answer", **items[0]))
    assert_same(last.answer, ask("answer", **items[2]))


@pytest.mark.parametrize("task", ["caption", "classify"])
def test_scores_that_are_not_finite(generator, ask, images, monkeypatch, task):
    decoder = generator.reader.decoder
    step = decoder.step
    monkeypatch.setattr(decoder, "step", lambda ids, cache: step(ids, cache) * float("nan"))
    with pytest.raises(UserError, match=r"cat\.jpg: .*finite"):
        ask(task, image=images[0])


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"questions": ["what?"]}, "1 questions for 5 images"),
        ({"questions": " "}, r"cat\.jpg: .*empty"),
        ({"candidates": "yes"}, "candidates"),
        ({"candidates": ["a", "a "]}, "'a' and 'a '"),
    ],
)
def test_answer_with_wrong_arguments(generator, images, arguments, word):
    with pytest.raises(UserError, match=word):
        generator.answer(**{"images": images, "questions": "what?", **arguments})


@pytest.mark.parametrize(
    ("task", "item", "word"),
    [
        ("match", {}, "no task 'match'"),
        ("caption", "a.jpg", "dictionary"),
        (Task("where?", answer="box", image=None), {}, "no picture"),
        ("infill", {"text": "word " * 90}, "96"),
    ],
)
def test_ask_for_what_cannot_be_done(generator, task, item, word):
    with pytest.raises(UserError, match=word):
        generator.ask(task, [item])


@pytest.fixture(scope="module")
def writer():
    """A model of vectors that also writes."""
    return onepeace.load_generator("tiny-captions", device="cpu")


@pytest.fixture
def cat(samples):
    return samples / "images" / "cat.jpg"


def generate_caption(writer, picture, **changes):
    """A caption by the task with these changes."""
    task = replace(writer.task("caption"), **changes)
    (generated,) = writer.stream(task, [{"image": picture}])
    return generated


def test_captions_by_agreement(writer, cat):
    generated = generate_caption(writer, cat, agreement=1e6, unsure_below={"image": 0.99})
    cosines = [answer.agreement for answer in generated.answers]
    assert cosines == sorted(cosines, reverse=True)
    assert str(generated.answer) == f"unsure ({generated.answer.text})"


def test_agreement_is_the_cosine(writer, cat):
    answers = generate_caption(writer, cat).answers
    embedder = writer.reader.embedder
    texts = embedder.encode_text([answer.text for answer in answers])
    cosines = embedder.similarity(embedder.encode([cat]), texts)
    assert [answer.agreement for answer in answers] == pytest.approx(cosines[0].tolist(), abs=1e-5)
