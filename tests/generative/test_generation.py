"""The terms of models that write: the original's loss, runs that go on to the bit, and what is refused."""

from types import SimpleNamespace

import pytest
import torch
from support.golden_ofa import OUTPUT, assert_near, golden, golden_ofa
from support.recipe_files import recipe_file
from support.training import assert_resume_is_exact, series, terms

import onepeace
from onepeace.config import read_yaml
from onepeace.data.batch import Batch
from onepeace.errors import UserError
from onepeace.generative.asking import mask_words
from onepeace.generative.captions import CiderReward
from onepeace.generative.tasks import Task
from onepeace.generative.terms import Generation, Prepared
from onepeace.train import trainer
from onepeace.train.model_config import make_config
from onepeace.train.passes import Passes

recipe_file("self_critical", "generative")

CAPTION = {"task": "caption", "label_smoothing": 0.1}


@pytest.fixture
def writing(small_recipe, ofa_folder):
    """Makes recipes on the squares."""

    def make(name="", *, start=ofa_folder, model=(), run=(), **fields):
        fields = {"steps": 4, "objective": {"generation": CAPTION}, **fields}
        return small_recipe(
            name,
            model={"from": str(start), **dict(model)},
            run={"batch_size": 4, "log_every": 1, **dict(run)},
            processors={"image": {"size": 32}},
            **fields,
        )

    return make


# The golden loss


class Numbers:
    """A tokenizer of texts that are ids."""

    def encode(self, text, add_special_tokens):
        return SimpleNamespace(ids=[int(word) for word in text.split()])


def golden_term(model, task, **options):
    (options,) = terms({"generation": {**CAPTION, **options}})
    return Generation(options, model, Prepared(task, Numbers()))


def texts(rows):
    """Rows of ids as texts, without special ones."""
    result = []
    for row in rows.tolist():
        result.append(" ".join(str(token) for token in row if token > 2))
    return result


def test_generation_loss_is_the_originals():
    """Of answers of a closed set, of which the target names one that is not in it."""
    model = golden_ofa()
    numbers = golden("closed_answers")
    choices = ["10 12 13", "10 11 14", "10 11", "20", "21", "55"]
    task = Task(" {text}", answer="choice", choices=choices, decoder_prompt="source")
    answers = []
    for answer, weight in zip(texts(numbers["target"]), numbers["weights"].tolist(), strict=True):
        answers.append({answer: weight, "21": 0.1, "rare": 1.0})
    batch = Batch(
        {"image": {"pixels": golden("caption")["pixels"]}},
        keys=["a", "b", "c"],
        captions=texts(numbers["ids"]),
        targets={"answers": answers},
    )
    term = golden_term(model, task, writes="answers", weighted=True)

    outputs = term.outputs(Passes(model, batch))
    (mean,) = term.loss(outputs, batch, model).values()

    assert len(outputs) == numbers["out.ntokens"]
    assert_near(outputs.sum().detach(), numbers["out.loss"], OUTPUT)
    assert_near(mean.detach() * len(outputs), numbers["out.loss"], OUTPUT)


def test_drop_worst_after_two_updates():
    term = golden_term(golden_ofa(), Task("x"), drop_worst=0.5, drop_worst_after=2)
    outputs = torch.tensor([4.0, 1.0, 3.0, 2.0])
    means = []
    for step in (1, 2, 3):
        term.step = step
        means.append(term.loss(outputs, Batch({}), None)["generation"].item())

    assert means == [2.5, 2.5, 1.5]


# Runs


def self_critical(beam, max_len, **options):
    return {**options, "changes": {"search": {"beam": beam, "max_len": max_len}}}


INFILLING = {
    "task": "infill",
    "changes": {"image": {}},
    "mask_share": 0.3,
    "drop_worst": 0.2,
    "drop_worst_after": 3,
    "patches": 3,
}
OBJECTIVES = {
    "written": {"generation": INFILLING},
    "self-critical": {"self_critical": self_critical(2, 3)},
}


@pytest.fixture
def graded(monkeypatch):
    """Rewards that differ: a caption of a model that knows nothing is worth 0."""

    def reward(self, texts, references):
        assert len(texts) == len(references)
        for captions in references:
            assert len(captions) == 1
            assert captions[0].endswith("square")
        return [1.0 - number % 2 for number in range(len(texts))]

    monkeypatch.setattr(CiderReward, "__call__", reward)


@pytest.mark.usefixtures("graded")
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_generation_resume_is_exact_to_the_bit(writing, tmp_path, kind):
    def make(name):
        return writing(
            name,
            steps=5,
            objective=OBJECTIVES[kind],
            model={"dropout": 0.2, "drop_path": 0.3, "freeze_stem_norms": False},
            run={"save_every": 2, "ema": 0.9},
        )

    assert_resume_is_exact(make, stop_at=3, steps=[1, 2, 3, 4, 5])

    assert min(series(tmp_path / "whole", "grad_norm")) > 0


def test_chunks_have_loss_and_gradient_of_whole_batch(writing, tmp_path):
    objective = {"generation": {**CAPTION, "drop_worst": 0.3}}
    for name, chunks in (("whole", 1), ("chunked", 2)):
        run = {"grad_cache_chunks": chunks}
        trainer.train(writing(name, steps=2, objective=objective, run=run))

    for field, tolerance in (("generation", 1e-5), ("grad_norm", 1e-4)):
        expected = series(tmp_path / "whole", field)
        assert series(tmp_path / "chunked", field) == pytest.approx(expected, rel=tolerance)


def test_folder_keeps_tasks_it_was_trained_for(writing):
    named = {"task": "name it", "changes": {"prompt": " what?", "search": {"max_len": 2}}}

    first = trainer.train(writing("first", steps=1, objective={"generation": named}))
    second = trainer.train(writing("second", steps=1, start=first))

    assert list(read_yaml(first / "tasks.yaml")) == ["name it"]
    assert list(read_yaml(second / "tasks.yaml")) == ["name it", "caption"]
    generator = onepeace.load_generator(second)
    assert generator.tasks["name it"].prompt == " what?"
    assert generator.reader.processors(generator.tasks["caption"])["image"].height == 32


# Rewards


def test_captions_become_what_is_rewarded(writing, tmp_path, monkeypatch):
    def length(self, texts, references):
        return [len(text) / 9 for text in texts]

    monkeypatch.setattr(CiderReward, "__call__", length)
    objective = {"self_critical": self_critical(3, 3)}

    trainer.train(writing(steps=12, objective=objective, optim={"lr": 5e-3}))

    rewards = series(tmp_path, "self_critical/reward")
    assert min(rewards[-3:]) > 1.2 * max(rewards[:2])


# Masked words


def test_mask_words_masks_spans():
    words = [f"w{number}" for number in range(40)]
    counts = []
    for _ in range(50):
        result = mask_words(" ".join(words), 0.3).split()
        kept = [word for word in result if word != "<mask>"]
        assert kept == [word for word in words if word in kept]
        assert "<mask>" in result
        counts.append(len(words) - len(kept))

    assert max(counts) == 12  # 30 % of the words, but where spans lie over one another
    assert sum(counts) / len(counts) > 9


# Mistakes


def generation(**options):
    return {"objective": {"generation": {"task": "caption", **options}}}


LONG = {"self_critical": self_critical(2, 2000)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (generation(task="capton"), r"objective\.generation\.task 'capton' .* caption"),
        (generation(writes="label"), "label .* targets of squares.tar"),
        (generation(task="infill"), "infill reads no picture"),
        ({"optim": {"layer_decay": 0.9}}, r"optim\.layer_decay"),
        ({"model": {"freeze_stem_norms": False}, "run": {"grad_cache_chunks": 2}}, "grad_cache_chunks=1"),
        ({"model": {"modalities": ["image"]}}, "architecture ofa"),
        ({"objective": LONG}, "max_len is 2000"),
        ({"objective": {"self_critical": {}}, "run": {"parallel": "fsdp"}}, "needs the whole model"),
    ],
)
def test_mistakes_in_generation_are_one_line(writing, fields, message):
    with pytest.raises(UserError, match=message) as error:
        make_config(writing(**fields))
    assert "\n" not in str(error.value)
