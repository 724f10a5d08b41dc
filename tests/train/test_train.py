"""The loop on small shards of coloured squares and tones: it learns, resumes and says what is wrong."""

import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.small_shards import COLOURS, TONES, square, tone
from support.training import ALL, DENOISING, MODEL, assert_same_weights, logged, recipe, source

from onepeace import cli
from onepeace.config import write_config
from onepeace.data.reader import open_sources
from onepeace.data.shard_writer import new_shards
from onepeace.embed.embedder import load
from onepeace.errors import UserError
from onepeace.train import loop, teachers
from onepeace.train.build import build_steps
from onepeace.train.evaluation import evaluation
from onepeace.train.initial_weights import make_model
from onepeace.train.log import read_log
from onepeace.train.model_config import make_config
from onepeace.train.processing import make_processors, write_tokenizer


@pytest.fixture(scope="module")
def stage_one(root, tmp_path_factory):
    """A model of squares and words, trained with every term of the paper's first stage."""
    out = tmp_path_factory.mktemp("stage1")
    return loop.train(recipe(root, out, steps=60, **DENOISING))


def recall(embedder, values_by_name, make, sentence, modality):
    """Share of three new items of each kind that are nearest to their own sentence."""
    rng = np.random.default_rng(99)
    files = []
    right = []
    for number, value in enumerate(values_by_name.values()):
        files += [make(value, rng) for _ in range(3)]
        right += [number] * 3
    items = embedder.encode(files)
    texts = embedder.encode_text([sentence.format(name) for name in values_by_name])
    nearest = embedder.similarity(items, texts).argmax(1)
    return (nearest == torch.tensor(right)).float().mean().item()


def test_stage_one_learns_and_every_loss_falls(stage_one):
    first, *_, last = [line for line in read_log(stage_one.parent / "log.jsonl") if "loss" in line]
    names = ["contrastive/text+image", "denoising/text", "denoising/image"]
    names += ["denoising/text+image:text", "denoising/text+image:image"]
    for name in names:
        assert last[name] < first[name], name
    assert recall(load(stage_one), COLOURS, square, "a {} square", "image") > 0.8


def with_audio(start):
    """A model that goes on from another, and copies its FFN."""
    audio = {"stem": "mel", **MODEL["adapters"]["audio"]}
    return {"from": str(start), "modalities": ALL, "adapters": {"audio": audio}, "copy": {"audio": "image"}}


def test_stage_two_aligns_audio_to_frozen_text(root, stage_one, tmp_path):
    before = load_file(stage_one / "model.safetensors")
    trained = ["adapters.audio.*", "norms.audio.*", "blocks.*.ffn.audio.*", "heads.audio.*", "logit_scale"]
    model = {**with_audio(stage_one), "projections": ALL}
    folder = loop.train(recipe(root, tmp_path, steps=50, pair="audio", model=model, freeze={"except": trained}))
    after = load_file(folder / "model.safetensors")
    frozen = (before.keys() & after.keys()) - {"logit_scale"}
    assert len(frozen) > 40
    for name in frozen:
        assert torch.equal(before[name], after[name]), name
    embedder = load(folder)
    assert recall(embedder, TONES, tone, "a {} tone", "audio") > 0.8
    assert recall(embedder, COLOURS, square, "a {} square", "image") > 0.8  # what was there still is


def test_copied_ffn_starts_from_the_other_modality(root, stage_one, tmp_path, caplog):
    wanted = recipe(root, tmp_path, model={**with_audio(stage_one), "projections": ["text", "image"]})
    caplog.set_level("INFO", "onepeace")
    made = make_model(wanted, make_config(wanted)).state_dict()
    assert "model.copy: audio starts with weights of image (" in caplog.text
    assert "of blocks, " in caplog.text
    assert "options of its adapter" not in caplog.text  # a sound has an adapter of its own
    assert torch.equal(made["blocks.1.ffn.audio.up.weight"], made["blocks.1.ffn.image.up.weight"])
    assert torch.equal(made["norms.audio.weight"], made["norms.image.weight"])


def test_a_run_starts_from_a_model_by_its_name(root, tmp_path):
    wanted = recipe(root, tmp_path, model={"from": "tiny-fast"})
    made = make_model(wanted, make_config(wanted)).state_dict()
    bundled = load("tiny-fast").module.state_dict()
    assert made.keys() == bundled.keys()
    assert all(torch.equal(made[name], bundled[name]) for name in bundled)
    wanted.model["from"] = "runs/none"
    with pytest.raises(UserError, match=r"runs/none: no such model folder"):
        make_config(wanted)


def test_texts_alone_feed_the_terms_of_text(root, tmp_path):
    """Words without pictures are a source of their own: a batch of them beside each batch of pairs."""
    with new_shards(tmp_path / "words", "words") as writer:
        for number, colour in enumerate(list(COLOURS) * 5):
            writer.write(f"w{number}", {}, [f"the {colour} thing"])
    words = {"shards": str(tmp_path / "words/*.tar"), "pair": ["text"]}
    wanted = recipe(
        root,
        tmp_path / "run",
        steps=4,
        data={"train": [source(), words]},
        objective={"contrastive": {"multi_positive": True}, "denoising/text": {}},
        mask={"text": {"unimodal": 0.3, "unit": "word"}},
    )
    config = make_config(wanted)
    sources = open_sources(wanted.data)
    write_tokenizer(wanted, sources, tmp_path / "run/tokenizer.json")
    processors = make_processors(config, tmp_path / "run")
    steps = build_steps(wanted, sources, processors, config, {})
    group = steps[0].batches
    assert [list(batch.inputs) for batch in group] == [["image", "text"], ["text"]]
    loop.train(wanted)
    (line,) = read_log(tmp_path / "run/log.jsonl")
    assert {"contrastive/text+image", "denoising/text"} <= set(line)


def test_resume_equals_uninterrupted_run(root, tmp_path):
    def make(name):
        return recipe(
            root,
            tmp_path / name,
            steps=8,
            model={**MODEL, "drop_path": 0.3},
            data={
                "augment": {"image": {"crop_scale": [0.5, 1.0], "flip": True, "color": 0.2}},
                "token_dropout": {"image": 0.3},
            },
            run={"batch_size": 8, "log_every": 2, "save_every": 3},
        )

    whole = loop.train(make("whole"))
    loop.train(make("cut"), stop_at=5)  # saved after 3: steps 4 and 5 are done again
    resumed = loop.train(make("cut"))
    assert_same_weights(resumed, whole)
    whole_lines = logged(tmp_path / "whole")
    resumed_lines = logged(tmp_path / "cut")
    assert [line["step"] for line in whole_lines] == [2, 4, 6, 8]
    # The line of step 4 averages steps 3 and 4; the resumed run saw only 4 of them.
    for line, resumed_line in zip(whole_lines, resumed_lines, strict=True):
        assert line["step"] == resumed_line["step"]
        assert line["step"] == 4 or line == resumed_line


def test_repeating_a_finished_run_leaves_its_model_alone(root, tmp_path):
    wanted = recipe(root, tmp_path, steps=2)
    model = loop.train(wanted)
    (model / "notes.txt").write_text("mine")
    written = model / "model.safetensors"
    before = written.stat().st_ino
    loop.train(wanted)
    assert written.stat().st_ino == before
    os.truncate(written, 100)
    loop.train(wanted)
    assert written.stat().st_size > 100
    assert (model / "notes.txt").read_text() == "mine"


def test_outside_teacher_is_asked_once_per_item(root, tmp_path, monkeypatch):
    asked = []

    def encode(pictures):
        asked.extend(pictures)
        means = [np.asarray(picture.convert("RGB")).mean((0, 1)) for picture in pictures]
        return torch.from_numpy(np.stack(means)) / 255

    def brightness(name, modality, output):
        return encode

    monkeypatch.setitem(teachers.TEACHERS, "brightness", brightness)
    terms = {
        "contrastive": {"multi_positive": True},
        "distillation/image": {"weight": 1.0, "teacher": {"library": "brightness", "name": ""}},
    }
    loop.train(recipe(root, tmp_path / "run", steps=12, objective=terms))
    assert len(asked) == 12 * len(COLOURS)
    lines = read_log(tmp_path / "run" / "log.jsonl")
    assert lines[-1]["distillation/image"] < lines[0]["distillation/image"]
    # What is there is not asked again; another teacher is.
    data = {"frozen_folder": str(tmp_path / "run" / "frozen")}
    loop.train(recipe(root, tmp_path / "again", steps=1, objective=terms, data=data))
    assert len(asked) == 12 * len(COLOURS)
    monkeypatch.setitem(teachers.TEACHERS, "darkness", brightness)
    terms["distillation/image"]["teacher"] = {"library": "darkness", "name": ""}
    loop.train(recipe(root, tmp_path / "other", steps=1, objective=terms, data=data))
    assert len(asked) == 24 * len(COLOURS)


def test_a_finished_run_goes_on_when_its_steps_are_raised(root, tmp_path):
    def train(folder, steps):
        wanted = recipe(
            root,
            tmp_path / folder,
            optim={"name": "muon", "lr": 3e-3},
            schedule={"steps": steps, "name": "wsd", "warmup_steps": 2, "decay_steps": 0},
            run={"log_every": 1},
        )
        return loop.train(wanted)

    train("raised", 3)
    raised = train("raised", 5)
    assert_same_weights(raised, train("whole", 5))
    assert [line["step"] for line in logged(tmp_path / "raised")] == [1, 2, 3, 4, 5]
    assert "steps: 5" in (tmp_path / "raised" / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({}, "set tones: no shard matches .*none.tar"),
        ({"sets": ["circles"]}, "evaluate.sets names 'circles'; .* has squares, tones, smells"),
        ({"sets": ["squares", "smells"]}, None),  # the model has no audio, and that set is left out
    ],
)
def test_shards_of_the_evaluation_are_looked_for_before_the_first_step(root, tmp_path, sets, message):
    path = tmp_path / "evaluate.yaml"
    path.write_text(
        "sets:\n"
        "  squares: {protocol: zero_shot, modality: image, shards: squares.tar}\n"
        "  tones: {protocol: zero_shot, modality: image, shards: none.tar}\n"
        "  smells: {protocol: zero_shot, modality: audio, shards: none.tar}\n"
    )
    wanted = recipe(root, tmp_path / "run", evaluate={"recipe": str(path), **sets})
    if message is None:
        assert evaluation(wanted)
    else:
        with pytest.raises(UserError, match=message):
            evaluation(wanted)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objective": {"denoising/video": {}}}, "no source has 'video'"),
        ({"model": {**MODEL, "modalities": ["text", "smell"]}}, "modalities names 'smell'"),
        ({"model": {**MODEL, "decoder": None}, **DENOISING}, "give model.decoder"),
        ({"model": {**MODEL, "copy": {"image": "text"}}}, r"model\.copy and .* of model\.from; give"),
        (
            {"model": {"from": "tiny-fast", "copy": {"audio": "imgae"}}},
            r"no modality 'imgae' to copy; did you mean image",
        ),
        (
            {"model": {"from": "tiny-fast", "copy": {"depth": "image"}}},
            r"the model has no modality 'depth'; known: text",
        ),
        ({"processors": {"imagee": {"size": 80}}}, r"processors\.imagee: no such modality; there are image, "),
    ],
)
def test_mistakes_in_a_recipe_are_named(root, tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        loop.train(recipe(root, tmp_path, steps=1, **fields))


def test_train_command_prints_the_recipe_and_the_folder(root, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    write_config(recipe(root, tmp_path / "run", steps=2), path)
    assert cli.main(["train", str(path), "--print", "optim.lr=0.5"]) == 0
    assert "lr: 0.5" in capsys.readouterr().out
    assert cli.main(["train", str(path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "run" / "model")


def test_workers_get_no_weights_of_the_model(root, tmp_path):
    """Spawned workers unpickle their data set; adapters that count tokens need no weights."""
    wanted = recipe(root, tmp_path, model={"size": "base", "modalities": ["text", "image"]})
    config = make_config(wanted)
    sources = open_sources(wanted.data)
    write_tokenizer(wanted, sources, tmp_path / "tokenizer.json")
    steps = build_steps(wanted, sources, make_processors(config, tmp_path), config, {})
    assert len(pickle.dumps(steps.builder.adapters)) < 200_000  # one embedding table is 150 MB
    sent = pickle.loads(pickle.dumps(steps))  # noqa: S301
    (batch,) = sent[0].batches
    assert batch.lengths["image"].tolist() == [1 + 1] * 24
    ids = batch.inputs["text"]["ids"]
    assert batch.lengths["text"].tolist() == ((ids != 1).sum(1) + 1).tolist()
