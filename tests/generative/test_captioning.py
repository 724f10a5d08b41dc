"""One caption head learns to write about pictures and sounds, and is read back as a generator."""

import pytest
from support.training import EVERY, MODEL, assert_falls, logged, make_recipe, source

from onepeace.config import write_config
from onepeace.errors import UserError
from onepeace.train import trainer
from onepeace.train.evaluation import evaluation

HEAD = {
    "kind": "caption",
    "on": ["image", "audio"],
    "vocab_size": 400,
    "dim": 32,
    "depth": 1,
    "num_heads": 2,
    "ffn_dim": 64,
    "max_tokens": 24,
    "dropout": 0.0,
}
OBJECTIVE = {"captioning/image": {"label_smoothing": 0.0}, "captioning/audio": {"label_smoothing": 0.0}}
SHORT = {"changes": {"search": {"beam": 2, "max_len": 7}}}
SQUARES = {"modality": "image", "shards": "squares.tar"}
EVALUATION = {
    "sets": {
        "written": {"protocol": "captions", **SQUARES},
        "ranked": {"protocol": "retrieval", "at": [5], **SQUARES},
    }
}


def captioning(head=HEAD, **fields):
    """Fields of a recipe."""
    model = {
        **MODEL,
        **EVERY,
        "heads": {"caption": head},
        "init_std": 0.08,
        "layer_scale": 1.0,
    }
    data = {"train": [source("image"), source("audio")]}
    return {"model": model, "data": data, "objective": OBJECTIVE, **fields}


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    """Folder of the run."""
    out = tmp_path_factory.mktemp("captions")
    trainer.train(make_recipe(root, out, steps=24, run={"batch_size": 12}, **captioning()))
    return out


@pytest.mark.parametrize("term", OBJECTIVE)
def test_caption_loss_falls(trained, term):
    assert_falls(trained, term, factor=0.8)


def test_captions_and_vectors_are_measured_during_run(small_recipe, tmp_path):
    pytest.importorskip("pycocoevalcap")
    path = tmp_path / "evaluate.yaml"
    write_config(EVALUATION, path)
    recipe = small_recipe("run", steps=1, evaluate={"recipe": str(path)}, **captioning())

    trainer.train(recipe, evaluation(recipe))

    names = set()
    for line in logged(tmp_path / "run"):
        names.update(line)
    assert {"valid/written/BLEU-4", "valid/written/CIDEr-D", "valid/ranked/text to image R@5"} <= names


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objective": {"captioning/text": {}}}, "its head reads image, audio"),
        ({"objective": {**OBJECTIVE, "captioning/image": {"head": "x"}}}, r"model\.heads\.x"),
        ({"objective": {**OBJECTIVE, "captioning/audio": SHORT}}, r"objective\.captioning/audio: its task caption"),
        ({"head": {**HEAD, "vocab_size": 300}}, "vocab_size is 300"),
        ({"head": {**HEAD, "on": ["video"]}}, "a modality of text, image, audio"),
    ],
)
def test_caption_recipe_that_does_not_fit(small_recipe, fields, message):
    with pytest.raises(UserError, match=message):
        trainer.train(small_recipe(**captioning(**fields)))
