"""The encoder of one modality as a backbone, and the pyramid over its map."""

import pytest
import torch
from support.small_models import ALL, batch_of, item, small_model

from onepeace.heads import Pyramid


@pytest.fixture(scope="module")
def model():
    return small_model(*ALL, decoder=None)


@torch.no_grad()
def test_maps_are_the_tokens_of_the_blocks_on_their_grid(model):
    pixels = {"pixels": torch.randn(2, 3, 16, 80)}
    first, last = model.backbone("image", out_indices=(0, -1))(pixels)
    assert first.shape == last.shape == (2, 32, 1, 5)
    tokens = model.features({"image": pixels})["image"]
    assert torch.allclose(last.flatten(2).transpose(1, 2), tokens[:, 1:], atol=1e-6, rtol=0)
    (plain,) = model.backbone("image", (0,), reshape=False, norm=False)(pixels)
    assert plain.shape == (2, 6, 32)
    assert torch.allclose(model.norms["image"](plain)[:, 5], first[:, :, 0, 4], atol=1e-6, rtol=0)
    assert (plain - tokens).abs().max() > 0.1
    assert model.backbone("image", (0, -1)).channels == [32, 32]


@torch.no_grad()
@pytest.mark.parametrize("key", ["text", "audio"])
def test_padding_is_zero_and_changes_nothing(model, key):
    backbone = model.backbone(key, (-2, -1))
    together = batch_of(model, range(4))[key]
    maps = backbone(together)
    for index in range(4):
        for alone, found in zip(backbone(item(key, index)), maps, strict=True):
            length = alone.shape[2]
            assert torch.allclose(found[index, :, :length], alone[0], atol=1e-5, rtol=0)
            assert not found[index, :, length:].any()
            assert alone.std() > 0.1


def test_gradients_reach_the_stem_and_the_blocks(model):
    maps = model.backbone("image", (0, 1))({"pixels": torch.randn(1, 3, 48, 48)})
    sum(one.square().mean() for one in maps).backward()
    grads = {name: p.grad is not None and bool(p.grad.any()) for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    assert all(grads[name] for name in grads if name.startswith(("adapters.image.stem", "blocks.0.attn")))
    assert not any(grads[name] for name in grads if "audio" in name or "text" in name)


def test_what_is_not_there_is_named(model):
    with pytest.raises(ValueError, match=r"no modality 'smell'; the model has text, image, audio"):
        model.backbone("smell")
    with pytest.raises(ValueError, match=r"out_indices has 2; this model has 2 blocks: -2 to 1"):
        model.backbone("image", (0, 2))


def test_pyramid_has_four_strides():
    torch.manual_seed(0)
    pyramid, x = Pyramid(32, 12), torch.randn(2, 32, 6, 10, requires_grad=True)
    maps = pyramid(x)
    assert [tuple(one.shape) for one in maps] == [(2, 12, 24, 40), (2, 12, 12, 20), (2, 12, 6, 10), (2, 12, 3, 5)]
    for one in maps:  # the norm at the end is over the channels of each place
        assert torch.allclose(one.mean(1), torch.zeros(()), atol=1e-5)
        (grad,) = torch.autograd.grad(one.sin().sum(), x, retain_graph=True)
        assert grad.abs().max() > 0
    seen = torch.autograd.grad(maps[0][0, :, 0, 0].sin().sum(), x)[0][0].abs().sum(0)
    assert seen[:1, :1].any()
    assert not seen[2:].any()
    assert not seen[:, 2:].any()
