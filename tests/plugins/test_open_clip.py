"""The model under open_clip's names, with open_clip's own zero-shot classifier, loss and habits."""

import math
import pickle

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from support.random_model import save_random_model
from torch.utils.data import default_collate

from onepeace.errors import UserError
from onepeace.plugins.open_clip import create_model_and_transforms, get_tokenizer

NAMES = ["dog", "cat", "bus", "sunflower", "clock", "owl"]
TEMPLATES = ("a photo of a {}", "a picture of the {}")


@pytest.fixture(scope="module")
def parts(random_folder):
    """(model, transform for training, transform), tokenizer."""
    return (*create_model_and_transforms(random_folder), get_tokenizer(random_folder))


@pytest.fixture
def pictures():
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)) for i in range(4)]


def test_its_zero_shot_classifier_is_as_right_as_ours(tiny, samples):
    model, _, preprocess = create_model_and_transforms("tiny", pretrained="laion2b")
    weights = open_clip.build_zero_shot_classifier(model, get_tokenizer("tiny"), NAMES, TEMPLATES)
    paths = [samples / f"images/{name}.jpg" for name in NAMES] + [samples / "images/eagle.jpg"]  # the last one is none
    with torch.no_grad():
        images = model.encode_image(torch.stack([preprocess(Image.open(path)) for path in paths]), normalize=True)
        logits = model.logit_scale.exp() * images @ weights
    ours = tiny.classify(paths, NAMES, template=TEMPLATES)
    torch.testing.assert_close(logits.softmax(1), ours, atol=1e-4, rtol=0)
    truth = torch.tensor([*range(len(NAMES)), 0])
    accuracies = [(found.argmax(1) == truth).float().mean() for found in (logits, ours)]
    assert accuracies[0] == accuracies[1]
    assert 0.5 < accuracies[0] < 1


def test_vectors_are_those_of_the_embedder(parts, model, pictures):
    towers, _, preprocess, tokenizer = parts
    texts = ["a dog", "", "two cats on a mat and a good many other words", "rain"]
    with torch.no_grad():
        images = towers.encode_image(torch.stack([preprocess(p) for p in pictures]))
        words = towers.encode_text(tokenizer(texts))
    for got, wanted in ((images, model.encode_image(pictures)), (words, model.encode_text(texts))):
        assert got.shape == wanted.shape
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


def test_ids_have_one_length_and_texts_do_not_depend_on_each_other(parts, random_folder):
    towers, _, _, tokenizer = parts
    texts = ["a dog", "word " * 40, "rain"]
    ids = tokenizer(texts)
    assert (ids.shape, ids.dtype, tokenizer.context_length) == ((3, 17), torch.int64, 17)
    stacked = default_collate([tokenizer(text)[0] for text in texts])  # as a data set of a loader gives them
    assert torch.equal(stacked, ids)
    with torch.no_grad():
        together = towers.encode_text(ids)
        alone = torch.cat([towers.encode_text(row[None]) for row in ids])
    assert together.shape == alone.shape == (3, 16)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    short = tokenizer(texts, context_length=5)
    assert short.shape == (3, 5)
    assert (short[1, -1], get_tokenizer(random_folder, 5)(texts).equal(short)) == (2, True)
    assert pickle.loads(pickle.dumps(tokenizer))(texts).equal(ids)  # noqa: S301 (workers are given it)


def test_the_transform_for_training_crops(parts, samples):
    _, augmented, preprocess, _ = parts
    picture = Image.open(samples / "images/dog.jpg")
    torch.manual_seed(1)
    first, second = augmented(picture), augmented(picture)
    torch.manual_seed(1)
    assert torch.equal(augmented(picture), first)
    plain = preprocess(picture)
    assert first.shape == second.shape == plain.shape == (3, 32, 32)
    assert first.isfinite().all()
    assert not torch.allclose(first, second, atol=0.1)
    # Only a little is cut off.
    assert torch.corrcoef(torch.stack([first.flatten(), plain.flatten()]))[0, 1] > 0.5


def test_its_loss_reaches_every_tower(parts, pictures):
    towers, _, preprocess, tokenizer = parts
    images = torch.stack([preprocess(picture) for picture in pictures])
    found = towers(images, tokenizer(["a", "b", "c", "d"]))
    loss = open_clip.ClipLoss()(*found)
    scores = found[2] * found[0] @ found[1].T
    expected = (scores.log_softmax(1).diag() + scores.log_softmax(0).diag()).mean() / -2
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    loss.backward()
    heads = towers.module.heads
    assert all(heads[key].weight.grad.abs().sum() > 0 for key in ("text", "image"))
    assert towers.module.logit_scale.grad.abs() > 0
    assert towers(image=images)[1] is None
    towers.zero_grad(set_to_none=True)


def test_members_that_programs_for_open_clip_read(random_folder, pictures, tmp_path):
    towers, _, preprocess = create_model_and_transforms(random_folder, cache_dir=tmp_path)
    assert (towers.visual.image_size, towers.visual.output_dim, towers.context_length) == ((32, 32), 16, 17)
    assert towers.logit_bias is None
    pixels, ids = preprocess(pictures[0])[None], get_tokenizer(random_folder)(["a dog"])
    assert torch.equal(towers.visual(pixels), towers.encode_image(pixels))
    towers.lock_image_tower()
    towers.set_grad_checkpointing()
    assert all(block.gradient_checkpointing for block in towers.module.blocks)
    images, texts, scale = towers.train()(pixels, ids)
    assert (images.requires_grad, texts.requires_grad, scale.requires_grad) == (False, True, True)
    locked = {name for name, parameter in towers.module.named_parameters() if not parameter.requires_grad}
    assert {name for name, _ in towers.visual.named_parameters()} == locked
    assert {"adapters.image.cls_token", "blocks.0.attn.q.weight", "heads.image.weight"} <= locked
    assert "blocks.0.ffn.text.up.weight" not in locked
    with pytest.raises(UserError, match="unlocked_groups"):
        towers.lock_image_tower(2)


def test_precision_and_temperature(tmp_path, random_folder):
    folder = save_random_model(tmp_path / "model", ("text", "image"), logit_scale=False)
    towers, _, preprocess = create_model_and_transforms(folder, precision="bf16")
    assert towers.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    vectors = towers.encode_image(preprocess(Image.new("RGB", (9, 9), "blue"))[None], normalize=True)
    assert next(towers.parameters()).dtype == torch.bfloat16
    assert vectors.dtype == torch.float32
    assert vectors.norm().item() == pytest.approx(1, abs=1e-6)
    with pytest.raises(UserError, match="dtype 'fp8' is not known"):
        create_model_and_transforms(random_folder, precision="fp8")
