"""Recipes whose parts do not fit together are one line, before any data is read; those that fit make a vocabulary."""

import pytest
from support.training import entries

from onepeace.config import build
from onepeace.data.sample import Sample
from onepeace.errors import UserError
from onepeace.processors.tokenizer import read_tokenizer
from onepeace.train.build import TOKENIZER, build_processors
from onepeace.train.model_config import make_config
from onepeace.train.processing import make_processors, write_tokenizer
from onepeace.train.recipe import Recipe

SMALL = {"size": "tiny", "dim": 32, "embed_dim": 32, "depth": 2, "num_heads": 2, "ffn_dim": 64}
MASK = {
    "image": {"unit": "patch", "unimodal": 0.75, "joint": 0.7},
    "text": {"unit": "word", "unimodal": 0.15, "joint": 0.4},
}
IMAGES = {"shards": "images.tar", "pair": ["image", "text"]}
SOUNDS = {"shards": "sounds.tar", "pair": ["audio", "text"]}
WORDS = {"library": "transformers", "name": "words", "reads": "captions"}
OUTSIDE = {"library": "transformers", "name": "x"}


def recipe(model=None, train=(IMAGES,), data=None, **fields):
    content = {
        "model": {**SMALL, **(model or {})},
        "data": {"train": list(train), **(data or {})},
        "objective": [{"term": "contrastive"}],
        "schedule": {"steps": 1},
        "run": {"out": "unused"},
        **fields,
    }
    return build(Recipe, content, "recipe")


def objective(*names, **options):
    return {"objective": entries(dict.fromkeys(names, options))}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train": [{"shards": "x.tar", "pair": ["image", "txt"]}]}, r"image\+txt has 'txt', .* text"),
        ({"train": [IMAGES, SOUNDS], "model": {"modalities": ["text", "image"]}}, "has 'audio', the model does not"),
        (objective("contrastive/audio+text"), r"objective\.contrastive/audio\+text\.on: no source has 'audio'"),
        (objective("contrastive", sources=["image+txt"]), r"contrastive/image\+txt\.sources: .* image\+text"),
        ({"train": [{"shards": "x.tar", "pair": ["image"]}]}, r"can feed objective\.contrastive"),
        (objective("contrastive/image"), "contrastive/image compares modalities and has one"),
        ({"model": {"heads": {"own": {"kind": "classifier", "on": "image", "labels": "no.json"}}}},
         r"model\.heads\.own\.labels: .* data\.root"),
        ({"model": {"projections": ["text"]}}, r"objective\.contrastive needs a projection of image"),
        ({"train": [IMAGES, SOUNDS], **objective("contrastive/image+text")}, r"no term .* reads audio\+text"),
        (objective("denoising/image"), r"objective\.denoising/image needs mask\.image\.unimodal"),
        ({**objective("denoising/image+text"), "mask": {**MASK, "text": {"unit": "word", "unimodal": 0.15}}},
         r"needs mask\.text\.joint"),
        ({**objective("denoising/image"), "mask": MASK, "data": {"token_dropout": {"image": 0.5}}},
         r"objective\.denoising/image .* data\.token_dropout\.image"),
        ({"mask": {"image": {"unit": "word", "unimodal": 0.5}}},
         r"mask\.image\.unit 'word' is not for image; known: patch, span"),
        ({"mask": {"audio": {"unit": "span", "unimodal": 0.5}}},
         r"mask\.audio: no pair of data\.train has audio; there are image"),
        (objective("distillation/image", teacher={"library": "transformer", "name": "x"}), "mer. .* transformers"),
        (objective("distillation/image+text", teacher=WORDS), r"objective\.distillation/image\+text\.on"),
        (objective("distillation/text", teacher=OUTSIDE), r"teacher\.reads: captions"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_together_are_one_line(fields, message):
    with pytest.raises(UserError, match=message) as caught:
        make_config(recipe(**fields))
    assert "\n" not in str(caught.value)


# The vocabulary

TEXTS = [f"the {kind} number {i} of many" for kind in ("first", "second", "third") for i in range(40)]
CAPTIONS = [[Sample("", "", {"text": TEXTS}, {})]]


def vocabulary_of(out, size, captions, is_resumed):
    wanted = recipe(tokenizer={"vocab_size": size}, run={"out": str(out)})
    build_processors(wanted, make_config(wanted), captions, is_resumed)
    return read_tokenizer(out / TOKENIZER).get_vocab_size()


def test_a_vocabulary_of_a_run_that_has_no_checkpoint_is_made_as_its_recipe_says_now(tmp_path):
    assert vocabulary_of(tmp_path, 300, CAPTIONS, is_resumed=False) == 300
    assert vocabulary_of(tmp_path, 290, CAPTIONS, is_resumed=False) == 290


def test_a_vocabulary_of_a_run_that_has_a_checkpoint_is_not_made_again(tmp_path):
    assert vocabulary_of(tmp_path, 300, CAPTIONS, is_resumed=False) == 300
    assert vocabulary_of(tmp_path, 290, [], is_resumed=True) == 300


def test_a_vocabulary_larger_than_the_models_is_one_line(tmp_path):
    wanted = recipe({"adapters": {"text": {"vocab_size": 280}}}, tokenizer={"vocab_size": 300})
    write_tokenizer(wanted, CAPTIONS, tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match=r"300 entries, more than model\.adapters\.text\.vocab_size 280; raise that"):
        make_processors(make_config(wanted), tmp_path)
