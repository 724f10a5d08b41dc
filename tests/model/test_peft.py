"""Adapters of peft in every linear layer of our modules; chosen ones: tests/train/test_lora.py."""

import pytest
import torch
from support.golden_cases import assert_near

peft = pytest.importorskip("peft")


@torch.no_grad()
def change_adapters(module):
    """An adapter begins with nothing to add."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn(parameter.shape))


@torch.no_grad()
def test_adapters_of_every_linear_layer(random_folder):
    plugin = pytest.importorskip("onepeace.plugins.transformers")
    plain = plugin.OnePeaceModel.from_onepeace(str(random_folder)).eval()
    inputs = {
        "input_ids": torch.tensor([[5, 6, 7, 2]]),
        "pixel_values": torch.randn(1, 3, 32, 32),
    }
    before = plain(**inputs)

    adapted = peft.get_peft_model(plain, peft.LoraConfig(r=4, target_modules="all-linear"))
    change_adapters(adapted)
    output = adapted(**inputs)
    assert (output.image_embeds - before.image_embeds).abs().max() > 0.01
    merged_output = adapted.merge_and_unload()(**inputs)
    for name in ("text_embeds", "image_embeds"):
        assert output[name].norm().item() == pytest.approx(1.0, abs=1e-6)
        assert_near(merged_output[name], output[name], 1e-6)
