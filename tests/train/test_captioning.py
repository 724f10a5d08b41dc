"""One caption head learns to write about pictures and sounds, and is read back as a generator."""

import numpy as np
import pytest
import torch
from support.training import EVERY, MODEL, recipe, source, terms
from torch.nn import functional as F

import onepeace
from onepeace.data.batch import Batch
from onepeace.data.shards import read_source
from onepeace.errors import UserError
from onepeace.train import loop
from onepeace.train.evaluation import evaluation
from onepeace.train.initial_weights import make_model
from onepeace.train.log import read_log
from onepeace.train.model_config import make_config
from onepeace.train.objective import Objective

HEAD = {"kind": "caption", "on": ["image", "audio"], "vocab_size": 400, "dim": 32, "depth": 1, "num_heads": 2,
        "ffn_dim": 64, "max_tokens": 24, "dropout": 0.0}  # fmt: skip
OBJECTIVE = {"captioning/image": {"label_smoothing": 0.0}, "captioning/audio": {"label_smoothing": 0.0}}


def caption_recipe(root, out, steps=60, head=None, **fields):
    model = {**MODEL, **EVERY, "heads": {"caption": {**HEAD, **(head or {})}}, "init_std": 0.08, "layer_scale": 1.0}
    data = {"train": [source("image"), source("audio")]}
    fields = {"objective": OBJECTIVE, "data": data, **fields}
    return recipe(root, out, steps, model=model, **fields)


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("captions")
    return loop.train(caption_recipe(root, out, steps=24, run={"batch_size": 12})), out


def items(root, modality, count):
    samples = read_source(source(modality)["shards"], (modality, "text"), root)[:count]
    return [sample.inputs[modality] for sample in samples], [sample.captions[0] for sample in samples]


def test_its_losses_fall(trained):
    first, *_, last = read_log(trained[1] / "log.jsonl")
    for name in OBJECTIVE:
        assert last[name] < 0.8 * first[name]


def test_its_captions_are_measured_during_the_run_and_its_vectors_too(root, tmp_path):
    pytest.importorskip("pycocoevalcap")
    shards, file = source("image")["shards"], tmp_path / "evaluate.yaml"
    file.write_text(
        f"sets:\n  written: {{protocol: captions, modality: image, shards: {shards}}}\n"
        f"  found: {{protocol: retrieval, modality: image, shards: {shards}, at: [5]}}\n"
    )
    made = caption_recipe(root, tmp_path / "run", steps=1, evaluate={"recipe": str(file)})
    loop.train(made, evaluation(made))
    scores = {name for line in read_log(tmp_path / "run" / "log.jsonl") for name in line if name.startswith("valid/")}
    assert {"valid/written/BLEU-4", "valid/written/CIDEr-D", "valid/found/text to image R@5"} <= scores


def test_batch_mates_change_no_caption(trained):
    folder, _ = trained
    generator = onepeace.load_generator(folder, dtype="float32")
    rng = np.random.default_rng(0)
    sounds = [{"audio": (rng.normal(0, 0.2, length).astype(np.float32), 16000)} for length in (9000, 31000, 16000)]
    picture = {"image": rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)}
    together = generator.caption([sounds[0], picture, *sounds[1:]], batch_size=4)
    for item, mixed in zip([sounds[0], picture, *sounds[1:]], together, strict=True):
        (alone,) = generator.caption([item])
        assert alone.text == mixed.text
        assert alone.score == pytest.approx(mixed.score, abs=1e-4)


def test_what_it_is_asked_is_kept_also_by_a_run_that_goes_on_from_it(root, tmp_path):
    objective = {"captioning/image": {"changes": {"search": {"beam": 2, "max_len": 7}}}}
    folder = loop.train(
        caption_recipe(root, tmp_path / "first", 1, objective=objective, data={"train": [source("image")]})
    )
    assert onepeace.load_generator(folder).tasks["caption"].search.max_len == 7
    model, data = {"from": str(folder)}, {"train": [source("image")]}
    folder = loop.train(recipe(root, tmp_path / "second", 1, model=model, data=data, objective={"contrastive": {}}))
    assert onepeace.load_generator(folder).tasks["caption"].search.max_len == 7


def test_loss_is_the_mean_over_the_words(root, tmp_path):
    made = caption_recipe(root, tmp_path, steps=1)
    module = make_model(made, make_config(made)).eval()
    objective = Objective(module, terms(OBJECTIVE), {})
    ids = torch.tensor([[5, 9, 2, 1, 1], [7, 8, 9, 6, 2]])
    pixels = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    batch = Batch({"image": {"pixels": pixels}, "text": {"ids": ids}}, keys=["a", "b"])
    found = objective(batch)["captioning/image"]
    features = module.encode(module.stems({"image": {"pixels": pixels}}))["image"]
    logits = module.heads["caption"](features, torch.tensor([[0, 5, 9, 2, 1], [0, 7, 8, 9, 6]]))
    nll = [F.cross_entropy(logits[row, :n], ids[row, :n], reduction="sum") for row, n in ((0, 3), (1, 5))]
    assert torch.isfinite(found)
    assert found.item() == pytest.approx((sum(nll) / 8).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": {"captioning/text": {}}}, "its head reads image, audio, one at a time"),
        ({"objective": {**OBJECTIVE, "captioning/image": {"head": "x"}}}, "needs model.heads.x"),
        (
            {"objective": {**OBJECTIVE, "captioning/audio": {"changes": {"search": {"max_len": 7}}}}},
            "objective.captioning/audio: its task caption is not that of another term; make them the same",
        ),
        ({"head": {"vocab_size": 300}}, r"vocab_size is 300, and texts have ids up to 399"),
        ({"head": {"on": ["video"]}}, "needs kind .* and on, a modality of text, image, audio"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(root, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        loop.train(caption_recipe(root, tmp_path, steps=1, **changes))
