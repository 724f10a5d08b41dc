"""The model under open_clip's names, with open_clip's own zero-shot classifier, loss and habits."""

import math

import open_clip
import pytest
import torch
from PIL import Image
from support.embedding import assert_same
from support.random_model import save_random_model
from torch.utils.data import default_collate

from onepeace.plugins.open_clip import create_model_and_transforms, get_tokenizer


@pytest.fixture
def towers(random_folder):
    return create_model_and_transforms(random_folder)[0]


@pytest.fixture(scope="module")
def transforms(random_folder):
    """The transform for training, and the one for everything else."""
    return create_model_and_transforms(random_folder)[1:]


@pytest.fixture(scope="module")
def tokenizer(random_folder):
    return get_tokenizer(random_folder)


@pytest.fixture
def pixels(transforms, pictures):
    _, transform = transforms
    return torch.stack([transform(picture) for picture in pictures])


def test_zero_shot_classifier_of_open_clip(tiny, samples):
    names = ["dog", "cat", "bus"]
    templates = ("a photo of a {}", "a picture of the {}")
    paths = [samples / f"images/{name}.jpg" for name in names]
    model, _, transform = create_model_and_transforms("tiny", pretrained="laion2b")

    class_vectors = open_clip.build_zero_shot_classifier(model, get_tokenizer("tiny"), names, templates)
    pixels = torch.stack([transform(Image.open(path)) for path in paths])
    logits = model.logit_scale.exp() * model.encode_image(pixels, normalize=True) @ class_vectors

    expected = tiny.classify(paths, names, template=templates)
    assert_same(logits.softmax(1), expected, atol=1e-4)


def test_vectors_are_those_of_the_embedder(towers, tokenizer, model, pictures, pixels, texts):
    assert_same(towers.encode_image(pixels), model.encode_image(pictures))
    assert_same(towers.encode_text(tokenizer(texts)), model.encode_text(texts))
    assert towers.visual.image_size == (32, 32)
    assert towers.visual.output_dim == 16


LONG_TEXTS = ["a dog", "word " * 40, "rain"]


def test_token_ids_have_one_length(tokenizer):
    ids = tokenizer(LONG_TEXTS)
    stacked = default_collate([tokenizer(text)[0] for text in LONG_TEXTS])  # as in a loader's data set

    assert tokenizer.context_length == 17
    assert ids.shape == (3, 17)
    assert ids.dtype == torch.int64
    assert torch.equal(stacked, ids)


def test_transform_for_training_crops(transforms, samples):
    augment, transform = transforms
    picture = Image.open(samples / "images/dog.jpg")
    torch.manual_seed(1)
    crop = augment(picture)
    next_crop = augment(picture)

    torch.manual_seed(1)
    assert torch.equal(augment(picture), crop)
    assert crop.shape == (3, 32, 32)
    assert crop.isfinite().all()
    assert not torch.allclose(crop, next_crop, atol=0.1)
    pair = torch.stack([crop.flatten(), transform(picture).flatten()])
    assert torch.corrcoef(pair)[0, 1] > 0.5  # only a little is cut off


def test_loss_of_open_clip_trains_both_towers(towers, pixels, tokenizer, texts):
    image_vectors, text_vectors, scale = towers(pixels, tokenizer(texts))
    open_clip.ClipLoss()(image_vectors, text_vectors, scale).backward()

    assert towers.module.heads["text"].weight.grad.any()
    assert towers.module.heads["image"].weight.grad.any()
    assert towers.module.logit_scale.grad.any()


def test_half_precision_and_first_temperature(tmp_path, pictures):
    folder = save_random_model(tmp_path / "model", ("text", "image"), logit_scale=False)
    towers, _, transform = create_model_and_transforms(folder, precision="bf16")

    pixels = transform(pictures[0]).unsqueeze(0)
    vectors = towers.encode_image(pixels, normalize=True)

    assert next(towers.parameters()).dtype == torch.bfloat16
    assert vectors.dtype == torch.float32
    assert vectors.norm().item() == pytest.approx(1, abs=1e-6)
    assert towers.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
