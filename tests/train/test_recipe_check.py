"""Recipes whose parts do not fit together are one line, before any data is read; those that fit make a vocabulary."""

import pytest
from support.training import EVERY, MODEL, make_recipe

from onepeace.data.sample import Sample
from onepeace.errors import UserError
from onepeace.processors.tokenizer import read_tokenizer
from onepeace.train.model_config import make_config
from onepeace.train.setup import TOKENIZER, build_processors, make_processors, write_tokenizer

MASK = {
    "image": {"unit": "patch", "unimodal": 0.75, "joint": 0.7},
    "text": {"unit": "word", "unimodal": 0.15, "joint": 0.4},
}
ALONE = {**MASK, "text": {"unit": "word", "unimodal": 0.15}}
IMAGES = {"shards": "images.tar", "pair": ["image", "text"]}
SOUNDS = {"shards": "sounds.tar", "pair": ["audio", "text"]}
HEAD = {"kind": "classifier", "on": "image", "labels": "no.json"}
DROPOUT = {"token_dropout": {"image": 0.5}}
WORDS = {"library": "transformers", "name": "words", "reads": "captions"}
OUTSIDE = {"library": "transformers", "name": "x"}
MISSPELT = {"library": "transformer", "name": "x"}


def small_recipe(model=(), train=(IMAGES,), data=(), **fields):
    return make_recipe(
        "unused",
        "unused",
        steps=1,
        model={**MODEL, **dict(model)},
        data={"train": list(train), **dict(data)},
        **fields,
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train": [{"shards": "x.tar", "pair": ["image", "txt"]}]}, "'txt', .* text"),
        ({"train": [SOUNDS]}, "has 'audio', the model"),
        ({"objective": {"contrastive/audio+text": {}}}, r"objective\.contrastive/audio\+text\.on: .* 'audio'"),
        ({"objective": {"contrastive/image": {}}}, "contrastive/image compares modalities"),
        ({"model": {"heads": {"own": HEAD}}}, r"model\.heads\.own\.labels: .* data\.root"),
        ({"model": {"projections": ["text"]}}, r"objective\.contrastive .* projection of image"),
        (
            {"train": [IMAGES, SOUNDS], "model": EVERY, "objective": {"contrastive/image+text": {}}},
            r"no term .* audio\+text",
        ),
        ({"objective": {"denoising/image": {}}}, r"objective\.denoising/image .* mask\.image\.unimodal"),
        ({"objective": {"denoising/image+text": {}}, "mask": ALONE}, r"mask\.text\.joint"),
        (
            {"objective": {"denoising/image": {}}, "mask": MASK, "data": DROPOUT},
            r"objective\.denoising/image .* data\.token_dropout\.image",
        ),
        ({"mask": {"image": {"unit": "word", "unimodal": 0.5}}}, r"mask\.image\.unit 'word' .* patch, span"),
        ({"mask": {"audio": {"unit": "span", "unimodal": 0.5}}}, r"mask\.audio: .* image"),
        ({"schedule": {"steps": 1, "min_lr": 1.0}}, r"schedule\.min_lr 1\.0 is above optim\.lr"),
        ({"objective": {"distillation/image": {"teacher": MISSPELT}}}, "transformer. .* transformers"),
        ({"objective": {"distillation/image+text": {"teacher": WORDS}}}, r"objective\.distillation/image\+text\.on"),
        ({"objective": {"distillation/text": {"teacher": OUTSIDE}}}, r"teacher\.reads: captions"),
    ],
)
def test_parts_that_do_not_fit_together(fields, message):
    with pytest.raises(UserError, match=message) as caught:
        make_config(small_recipe(**fields))
    assert "\n" not in str(caught.value)


def test_table_in_place_of_shards_is_told_what_to_do():
    with pytest.raises(UserError, match=r"x\.parquet is a table; .* onepeace shards x\.parquet"):
        small_recipe(train=[{"shards": "x.parquet", "pair": ["image", "text"]}])


# The vocabulary

TEXTS = [f"the {ordinal} number {i} of many" for ordinal in ("first", "second", "third") for i in range(40)]
SOURCES = [[Sample("", "", {"text": TEXTS}, {})]]


def vocabulary_size(out, size, sources, *, is_resumed):
    recipe = small_recipe(tokenizer={"vocab_size": size}, run={"out": str(out)})
    build_processors(recipe, make_config(recipe), sources, is_resumed)
    return read_tokenizer(out / TOKENIZER).get_vocab_size()


def test_vocabulary_of_run_without_checkpoint_is_made_again(tmp_path):
    assert vocabulary_size(tmp_path, 300, SOURCES, is_resumed=False) == 300
    assert vocabulary_size(tmp_path, 290, SOURCES, is_resumed=False) == 290


def test_vocabulary_of_resumed_run_stays(tmp_path):
    assert vocabulary_size(tmp_path, 300, SOURCES, is_resumed=False) == 300
    assert vocabulary_size(tmp_path, 290, [], is_resumed=True) == 300


def test_vocabulary_larger_than_model(tmp_path):
    recipe = small_recipe({"adapters": {"text": {"vocab_size": 280}}}, tokenizer={"vocab_size": 300})
    write_tokenizer(recipe, SOURCES, tmp_path / "tokenizer.json")

    with pytest.raises(UserError, match=r"300 entries, .* model\.adapters\.text\.vocab_size 280"):
        make_processors(make_config(recipe), tmp_path)


def test_vocabulary_of_a_file(tmp_path):
    """It may be named by the folder of its model, and no caption is read."""
    folder = tmp_path / "model"
    assert vocabulary_size(folder, 280, SOURCES, is_resumed=False) == 280
    recipe = small_recipe(tokenizer={"file": str(folder)}, run={"out": str(tmp_path / "run")})

    build_processors(recipe, make_config(recipe), [], is_resumed=False)

    assert read_tokenizer(tmp_path / "run" / TOKENIZER).get_vocab_size() == 280


def test_two_vocabularies_are_refused():
    with pytest.raises(UserError, match=r"tokenizer\.name and tokenizer\.file"):
        small_recipe(tokenizer={"name": "clip", "file": "model"})
