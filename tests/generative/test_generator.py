"""`onepeace.load_generator` and what its model answers: typed, in order, each answer from its own item alone."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from support.generative import save_small_ofa, small_generator

import onepeace
from onepeace.config import write_config
from onepeace.errors import UserError
from onepeace.generative.answers import Box, Choice, Objects, Text, read_answer
from onepeace.generative.search import Hypothesis, SearchOptions
from onepeace.generative.tasks import Task, read_tasks
from onepeace.hub.folder import TASKS


@pytest.fixture(scope="module")
def generator():
    return small_generator()


@pytest.fixture(scope="module")
def images(samples):
    return [samples / "images" / name for name in ("cat.jpg", "bus.jpg", "sea.jpg", "owl.jpg", "car.jpg")]


def near(ours, theirs):
    """Equal but for rounding."""
    assert type(ours) is type(theirs)
    assert ours.score == pytest.approx(theirs.score, abs=1e-4)
    assert ours.confidence == pytest.approx(theirs.confidence, abs=1e-4)
    for name in ("text", "box", "choice", "objects"):
        assert getattr(ours, name, None) == getattr(theirs, name, None)


def test_captions_come_in_order_and_alone_as_together(generator, images):
    together = generator.caption(images, batch_size=3)
    assert all(isinstance(one, Text) and one.text == one.text.strip() for one in together)
    assert len({one.text for one in together}) > 1
    for image, one in zip(images, together, strict=True):
        near(generator.caption([image])[0], one)
        assert 0 < one.confidence < 1


def test_questions_of_different_lengths_share_a_batch(generator, images):
    questions = ["what is it?", "How many people are standing on the left side of it?", "who"] + ["is it red"] * 2
    together = generator.answer(images, questions)
    for image, question, one in zip(images, questions, together, strict=True):
        near(generator.answer([image], question)[0], one)


def test_a_prompt_of_ones_own_with_and_without_a_picture(generator, images):
    prompts = ["what is this?", " what?", "what?"]
    pictures = [images[0], images[1], images[1]]
    items = [{"prompt": prompt, "image": picture} for prompt, picture in zip(prompts, pictures, strict=True)]
    together = generator.ask(Task("{prompt}"), items)
    for item, one in zip(items, together, strict=True):
        near(generator.ask(Task("{prompt}"), [item])[0], one)
    assert together[1] == together[2]
    (blind,) = generator.ask(Task("{prompt}", image=None), items[:1])
    assert blind.score != together[0].score


def test_boxes_are_in_pixels_of_the_picture_and_within_it(generator, images):
    pictures = [Image.new("RGB", (200, 20), "red"), images[1]]
    small, large = generator.ground(pictures, "the bus")
    assert isinstance(small, Box)
    for box, (width, height) in ((small.box, (200, 20)), (large.box, Image.open(images[1]).size)):
        assert all(0 <= x <= width for x in box[::2])
        assert all(0 <= y <= height for y in box[1::2])
    # Twice as large, the same box twice as large.
    (twice,) = generator.ground([pictures[0].resize((400, 40))], "the bus")
    assert twice.box == pytest.approx([2 * corner for corner in small.box])


def test_corners_of_an_answer_are_sorted(generator):
    bins, task = generator.vocabulary.bins, generator.tasks["ground"]
    for answer, kind in (([40, 5, 10, 30], "box"), ([40, 5, 10, 30, None], "objects")):
        ids = [9 if one is None else bins[one] for one in answer]
        hypothesis = Hypothesis((*ids, 2), -1.0, (-1.0,) * (len(ids) + 1))
        asked, side = replace(task, answer=kind), (512, 512)
        found = read_answer(hypothesis, asked, generator.vocabulary, size=side, resized=side)
        x0, y0, x1, y1 = found.box if kind == "box" else found.objects[0][1]
        assert (x0 < x1, y0 < y1) == (True, True)


def test_region_is_described(generator, images):
    boxes = np.array([[10, 20, 100, 110], [200, 100, 400, 250]], dtype=np.float32)
    texts = generator.ask("describe", [{"image": images[0], "box": box} for box in boxes])
    assert texts[0].score != texts[1].score
    assert generator.ask("describe", [{"image": images[0], "box": box} for box in boxes.tolist()]) == texts


@pytest.mark.parametrize("box", [[1, 2], "abcd", [0, 0, float("nan"), 9], [9, 0, 3, 9], [0, 9, 9, 3], "1234", 5])
def test_what_is_no_box_is_refused(generator, images, box):
    with pytest.raises(UserError, match=r"cat.jpg: a box is \[x0, y0, x1, y1\]"):
        generator.ask("describe", [{"image": images[0], "box": box}])


def test_choices_are_probabilities(generator, images):
    found = generator.answer(images, "what is it?", candidates=["a dog", "a bus", "the sea", "yes"])
    for one in found:
        assert isinstance(one, Choice)
        assert one.score == max(one.scores.values())
        assert sum(np.exp(list(one.scores.values()))) == pytest.approx(1, abs=1e-5)
        assert one.confidence == pytest.approx(np.exp(one.score), abs=1e-5)
    near(generator.answer(images[1:2], "what is it?", candidates=["a dog", "a bus", "the sea", "yes"])[0], found[1])
    (stored,) = generator.ask("classify", [{"image": images[0]}])
    assert list(stored.scores) == ["dog", "cat", "a red bus"]


def test_entailment_has_the_names_of_its_classes(generator, images):
    item = {"image": images[0], "text": "a cat", "premise": "an animal sleeps"}
    (alone,), (known,) = generator.ask("entail", [item]), generator.ask("entail_premise", [item])
    assert list(alone.scores) == list(known.scores) == ["entailment", "contradiction", "neutral"]
    assert alone.scores != known.scores


def test_text_is_completed_and_objects_are_found(generator, images):
    assert isinstance(generator.ask("infill", [{"text": "a <mask> on the beach"}])[0], Text)
    assert isinstance(generator.ask("detect", [{"image": images[0]}])[0], Objects)


def test_bad_file_is_named_and_the_others_come_out(generator, images, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(images[0].read_bytes()[:2000])
    given = [images[0], broken, tmp_path / "missing.png", images[1]]
    first, *failures, last = generator.stream("caption", [{"image": one} for one in given])
    for one, other in zip((first, last), generator.caption([images[0], images[1]]), strict=True):
        near(one.answer, other)
    assert [(failure.index, failure.name) for failure in failures] == [(1, str(broken)), (2, str(given[2]))]
    assert all("\n" not in failure.reason and failure.name not in failure.reason for failure in failures)
    with pytest.raises(UserError, match=r"broken\.jpg: ") as caught:
        generator.caption(given)
    assert "\n" not in str(caught.value)


def test_item_that_the_model_refuses_leaves_the_others(generator, images, monkeypatch):
    encode = generator.reader.encode

    def refusing(ids, *rest):
        if max(map(len, ids)) > 20:
            raise UserError("too long for this model")
        return encode(ids, *rest)

    questions = ["what?", "what is it " * 9, "who?"]
    expected = generator.answer([images[0], images[2]], questions[::2])
    monkeypatch.setattr(generator.reader, "encode", refusing)
    items = [{"image": image, "text": text} for image, text in zip(images[:3], questions, strict=True)]
    first, failed, last = generator.stream("answer", items)
    for one, other in zip((first, last), expected, strict=True):
        near(one.answer, other)
    assert (failed.index, failed.name, failed.reason) == (1, str(images[1]), "too long for this model")


def test_scores_that_are_not_finite_are_no_answer(generator, images, monkeypatch):
    step = generator.reader.decoder.step
    monkeypatch.setattr(generator.reader.decoder, "step", lambda ids, cache: step(ids, cache) * float("nan"))
    for task in ("caption", "classify"):
        with pytest.raises(UserError, match=r"cat\.jpg: .*finite.*weights may be damaged"):
            generator.ask(task, [{"image": images[0]}])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g, i: g.caption(i[0]), "images should be a list"),
        (lambda g, i: g.answer(str(i[0]), "what?"), "images should be a list"),
        (lambda g, i: g.answer(i, ["one"]), "^1 questions for 5 images; give as many of each"),
        (lambda g, i: g.answer(i, " "), r"cat\.jpg: the text for \{text\} is empty"),
        (lambda g, i: g.answer(i, "what?", candidates="yes"), "candidates should be a list"),
        (lambda g, i: g.answer(i, "what?", []), "there is nothing to choose from"),
        (lambda g, i: g.answer(i, "what?", ["a", "a "]), "'a' and 'a ' to choose from are the same to the model"),
        (lambda g, i: g.answer(i, "what?", ["a", ""]), "'' is nothing to choose"),
        (lambda g, i: g.caption(i, batch_size=0), "batch_size is 0; it must be a whole number"),
        (lambda g, i: g.stream("caption", [], batch_size=1.5), "batch_size is 1.5"),
        (lambda g, i: list(g.stream("caption", ["a.jpg"])), "an item is a dictionary of fields"),
        (lambda g, i: g.ask(Task("where?", answer="box", image=None), [{}]), "and there is no picture"),
        (lambda g, i: Task("where?", answer="box", search=SearchOptions(max_len=3)), "max_len is 3"),
        (lambda g, i: g.task("match"), "no task 'match'; it has caption"),
        (lambda g, i: g.ask("infill", [{"text": "word " * 90}]), "the model has 96 places"),
    ],
)
def test_wrong_calls_are_refused_in_one_line(generator, images, call, message):
    with pytest.raises(UserError, match=message) as caught:
        call(generator, images)
    assert "\n" not in str(caught.value)


def test_folder_gives_the_model_and_its_tasks(tmp_path, images, generator):
    folder = save_small_ofa(tmp_path / "model")
    plain = onepeace.load_generator(folder, device="cpu")
    assert plain.tasks == read_tasks()
    plain.tasks = generator.tasks
    near(plain.caption(images[:1])[0], generator.caption(images[:1])[0])
    write_config({"caption": Task("what is there?", search=SearchOptions(max_len=3))}, folder / TASKS)
    stored = onepeace.load_generator(folder, device="cpu")
    assert stored.tasks["caption"].prompt == "what is there?"
    (own,) = stored.caption(images[:1])
    near(own, stored.ask(Task("what is there?", search=SearchOptions(max_len=3)), [{"image": images[0]}])[0])


def test_model_of_vectors_is_refused():
    with pytest.raises(UserError, match="tiny: writes nothing; name a model that does: tiny-captions, "):
        onepeace.load_generator("tiny")


def test_captions_are_ranked_by_how_well_they_fit_and_marked_where_they_do_not(samples):
    writer = onepeace.load_generator("tiny-captions", device="cpu")
    items = [{"image": samples / "images/cat.jpg"}, {"image": samples / "images/sea.jpg"}]
    embedder = writer.reader.embedder
    task = replace(writer.task("caption"), agreement=0.0, unsure_below={"image": -1.0})
    for item, found in zip(items, writer.stream(task, items), strict=True):
        picture, texts = embedder.encode([item]), embedder.encode_text([one.text for one in found.answers])
        fits = embedder.similarity(picture, texts)[0]
        np.testing.assert_allclose([one.agreement for one in found.answers], fits, atol=1e-5)
        assert [one.score for one in found.answers] == sorted((one.score for one in found.answers), reverse=True)
    for item in items:
        (found,) = writer.stream(replace(task, agreement=1e6, unsure_below={"image": 0.99}), [item])
        fits = [one.agreement for one in found.answers]
        assert fits == sorted(fits, reverse=True)
        assert str(found.answer) == f"unsure ({found.answer.text})"
