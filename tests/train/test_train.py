"""The loop on small shards of coloured squares and tones: it learns, resumes and says what is wrong."""

import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.small_shards import COLOURS, TONES, square, tone, write_shards
from support.training import (
    ALL,
    DENOISING,
    MODEL,
    assert_falls,
    assert_same_weights,
    logged,
    make_recipe,
    series,
    source,
)

from onepeace import cli
from onepeace.config import write_config
from onepeace.data.source import open_sources
from onepeace.data.write import new_shards
from onepeace.embed.embedder import load
from onepeace.errors import UserError
from onepeace.train import trainer
from onepeace.train.evaluation import evaluation
from onepeace.train.initial_weights import make_model
from onepeace.train.model_config import make_config
from onepeace.train.setup import build_steps, make_processors, write_tokenizer


@pytest.fixture(scope="module")
def stage_one(root, tmp_path_factory):
    """A model of squares and words, trained with every term of the paper's first stage."""
    return trainer.train(make_recipe(root, tmp_path_factory.mktemp("stage1"), steps=50, **DENOISING))


def recall(embedder, make, value_by_class, sentence):
    """Share of three new items of each class that are nearest to their own sentence."""
    rng = np.random.default_rng(99)
    files = []
    for value in value_by_class.values():
        files += [make(value, rng) for _ in range(3)]
    texts = embedder.encode_text([sentence.format(name) for name in value_by_class])
    nearest = embedder.similarity(embedder.encode(files), texts).argmax(1)
    classes = torch.arange(len(files)) // 3
    return (nearest == classes).float().mean().item()


def assert_knows_squares(folder):
    assert recall(load(folder), square, COLOURS, "a {} square") > 0.8


def test_stage_one_learns(stage_one):
    assert_knows_squares(stage_one)


@pytest.mark.parametrize(
    "loss",
    [
        "contrastive/text+image",
        "denoising/text",
        "denoising/image",
        "denoising/text+image:text",
        "denoising/text+image:image",
    ],
)
def test_every_loss_of_stage_one_falls(stage_one, loss):
    assert_falls(stage_one.parent, loss)


def with_audio(start, projections):
    """A model that goes on from another, and copies its FFN."""
    return {
        "from": str(start),
        "modalities": ALL,
        "projections": projections,
        "adapters": {"audio": {"stem": "mel", **MODEL["adapters"]["audio"]}},
        "copy": {"audio": "image"},
    }


def test_stage_two_aligns_audio_to_frozen_text(small_recipe, stage_one):
    trained = ["adapters.audio.*", "norms.audio.*", "blocks.*.ffn.audio.*", "heads.audio.*", "logit_scale"]
    recipe = small_recipe(
        steps=50,
        pair="audio",
        model=with_audio(stage_one, projections=ALL),
        freeze={"except": trained},
    )

    folder = trainer.train(recipe)

    before = load_file(stage_one / "model.safetensors")
    after = load_file(folder / "model.safetensors")
    frozen = (before.keys() & after.keys()) - {"logit_scale"}
    assert len(frozen) > 40
    for name in frozen:
        assert torch.equal(before[name], after[name]), name
    assert recall(load(folder), tone, TONES, "a {} tone") > 0.8
    assert_knows_squares(folder)


def test_copied_ffn_starts_from_other_modality(small_recipe, stage_one, caplog):
    caplog.set_level("INFO", "onepeace")
    recipe = small_recipe(model=with_audio(stage_one, projections=["text", "image"]))

    weights = make_model(recipe, make_config(recipe)).state_dict()

    assert torch.equal(weights["blocks.1.ffn.audio.up.weight"], weights["blocks.1.ffn.image.up.weight"])
    assert torch.equal(weights["norms.audio.weight"], weights["norms.image.weight"])
    assert "audio starts with 14 weights of image" in caplog.text


# What a run reads


def build(recipe, out):
    """The steps of a run, as its loop builds them."""
    config = make_config(recipe)
    sources = open_sources(recipe.data)
    write_tokenizer(recipe, sources, out / "tokenizer.json")
    return build_steps(recipe, sources, make_processors(config, out), config, {})


def test_texts_alone_feed_terms_of_text(small_recipe, tmp_path):
    """Words without pictures are a source of their own: a batch of them beside each batch of pairs."""
    with new_shards(tmp_path / "words", "words") as writer:
        for number, colour in enumerate(list(COLOURS) * 5):
            writer.write(f"w{number}", {}, [f"the {colour} thing"])
    words = {"shards": str(tmp_path / "words/*.tar"), "pair": ["text"]}
    recipe = small_recipe(
        "run",
        steps=4,
        data={"train": [source(), words]},
        objective={"contrastive": {"multi_positive": True}, "denoising/text": {}},
        mask={"text": {"unimodal": 0.3, "unit": "word"}},
    )

    batches = build(recipe, tmp_path / "run")[0].batches
    trainer.train(recipe)

    assert [list(batch.inputs) for batch in batches] == [["image", "text"], ["text"]]
    (line,) = logged(tmp_path / "run")
    assert {"contrastive/text+image", "denoising/text"} <= set(line)


def test_workers_get_no_weights_of_model(small_recipe, tmp_path):
    """Spawned workers unpickle their data set; adapters that count tokens need no weights."""
    recipe = small_recipe(model={"size": "base", "modalities": ["text", "image"]})
    steps = build(recipe, tmp_path)
    assert len(pickle.dumps(steps.builder.adapters)) < 200_000  # one embedding table is 150 MB

    unpickled = pickle.loads(pickle.dumps(steps))  # noqa: S301

    (batch,) = unpickled[0].batches
    assert batch.lengths["image"].tolist() == [1 + 1] * 24


# Runs that go on


def test_lost_shards_are_in_the_log(small_recipe, tmp_path):
    write_shards(tmp_path / "shards")
    (tmp_path / "shards" / "squares-2.tar").write_bytes(b"")
    data = {"root": str(tmp_path / "shards"), "train": [source(shards="squares*.tar")], "broken_limit": 0.5}
    trainer.train(small_recipe("run", steps=1, data=data))
    assert logged(tmp_path / "run")[-1]["lost_shards"] == 1


def test_finished_run_mends_its_model(small_recipe):
    recipe = small_recipe(steps=2)
    folder = trainer.train(recipe)
    weights = folder / "model.safetensors"
    (folder / "notes.txt").write_text("mine")

    os.truncate(weights, 100)
    trainer.train(recipe)
    assert weights.stat().st_size > 100
    assert (folder / "notes.txt").read_text() == "mine"


def test_finished_run_goes_on_when_steps_are_raised(small_recipe, tmp_path):
    def train(name, steps):
        recipe = small_recipe(
            name,
            optim={"name": "muon", "lr": 3e-3},
            schedule={"steps": steps, "name": "wsd", "warmup_steps": 2, "decay_ratio": 0.0},
            run={"log_every": 1},
        )
        return trainer.train(recipe)

    train("raised", 3)
    raised = train("raised", 5)

    assert_same_weights(raised, train("whole", 5))
    assert series(tmp_path / "raised", "step") == [1, 2, 3, 4, 5]
    assert "steps: 5" in (tmp_path / "raised" / "recipe.yaml").read_text()


# Mistakes

SETS = {
    "squares": {"protocol": "zero_shot", "modality": "image", "shards": "squares.tar"},
    "tones": {"protocol": "zero_shot", "modality": "image", "shards": "none.tar"},
    "smells": {"protocol": "zero_shot", "modality": "audio", "shards": "none.tar"},
}


@pytest.fixture
def evaluate(small_recipe, tmp_path):
    """The evaluation of a recipe on some of SETS."""
    path = tmp_path / "evaluate.yaml"
    write_config({"sets": SETS}, path)

    def of_sets(*sets):
        return evaluation(small_recipe(evaluate={"recipe": str(path), "sets": sets}))

    return of_sets


def test_shards_of_evaluation_are_looked_for_before_training(evaluate):
    with pytest.raises(UserError, match=r"set tones: .*none\.tar"):
        evaluate("squares", "tones")


def test_set_of_lacking_modality_is_left_out(evaluate):
    assert evaluate("squares", "smells")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": {"from": "runs/none"}}, "runs/none"),
        ({"model": {**MODEL, "modalities": ["text", "smell"]}}, "modalities names 'smell'"),
        ({"model": {**MODEL, "decoder": None}, **DENOISING}, r"model\.decoder"),
        ({"model": {**MODEL, "copy": {"image": "text"}}}, r"model\.copy .* model\.from"),
        ({"model": {"from": "tiny-fast", "copy": {"audio": "imgae"}}}, "'imgae' .* image"),
        ({"model": {"from": "tiny-fast", "copy": {"depth": "image"}}}, "'depth'; known: text"),
        (
            {"model": {"from": "tiny-fast", "adapters": {"text": {"num_buckets": 5}}}},
            r"adapters\.text\.bias_tables\.0: .* there, .* here",
        ),
        ({"processors": {"imagee": {"size": 80}}}, r"processors\.imagee: .* image"),
    ],
)
def test_mistakes_in_a_recipe(small_recipe, fields, message):
    with pytest.raises(UserError, match=message):
        trainer.train(small_recipe(**fields))


# The command


def test_train_command_prints_recipe_and_folder(small_recipe, tmp_path, capsys):
    path = str(tmp_path / "recipe.yaml")
    write_config(small_recipe("run", steps=2), path)

    assert cli.main(["train", path, "--print", "optim.lr=0.5"]) == 0
    assert "lr: 0.5" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()

    assert cli.main(["train", path]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "run" / "model")
