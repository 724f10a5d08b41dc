"""Adapters of peft in our modules, by the names of their linear layers."""

import re

import pytest
import torch
from support.golden_cases import assert_near

import onepeace

peft = pytest.importorskip("peft")

TARGETS = r"blocks\.\d+\.(attn\.(q|k|v|proj)|ffn\.\w+\.down)"
TEXTS = ["a dog", "waves on a beach"]


@torch.no_grad()
def change_adapters(module):
    """An adapter begins with nothing to add."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn(parameter.shape))


@pytest.fixture
def load(random_folder):
    return lambda: onepeace.load(random_folder, device="cpu", modalities=["text", "image"])


@pytest.fixture
def embedder(load):
    return load()


@pytest.fixture
def adapted(embedder):
    return peft.get_peft_model(embedder.module, peft.LoraConfig(r=4, target_modules=TARGETS))


def test_adapters_alone_are_trained(embedder, adapted):
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    # For each block q, k, v and proj, and for each of two modalities its down, each two matrices.
    assert len(trained) == len(embedder.module.blocks) * (4 + 2) * 2
    for name in trained:
        assert re.search(rf"model\.{TARGETS}\.lora_[AB]\.default\.weight$", name)


def test_adapters_are_saved_and_loaded(load, embedder, adapted, tmp_path):
    change_adapters(adapted)
    vectors = embedder.encode_text(TEXTS)
    adapted.save_pretrained(str(tmp_path))

    plain = load()
    assert (vectors - plain.encode_text(TEXTS)).abs().max() > 0.05
    peft.PeftModel.from_pretrained(plain.module, str(tmp_path))
    assert_near(plain.encode_text(TEXTS), vectors, 1e-6)


def test_merged_adapters_give_a_plain_model(load, embedder, adapted):
    change_adapters(adapted)
    vectors = embedder.encode_text(TEXTS)
    merged = adapted.merge_and_unload()
    assert list(merged.state_dict()) == list(load().module.state_dict())
    assert_near(onepeace.Embedder(merged, embedder.processors).encode_text(TEXTS), vectors, 1e-5)


ALL_LINEAR = {
    "LoRA": peft.LoraConfig(r=4, target_modules="all-linear"),
    "OFT": peft.OFTConfig(r=0, oft_block_size=4, target_modules="all-linear"),
}
"""One that adds to a layer's output, and one that turns its input."""


@torch.no_grad()
@pytest.mark.parametrize("method", ALL_LINEAR)
def test_adapters_of_every_linear_layer(random_folder, method):
    plugin = pytest.importorskip("onepeace.plugins.transformers")
    plain = plugin.OnePeaceModel.from_onepeace(str(random_folder)).eval()
    inputs = {
        "input_ids": torch.tensor([[5, 6, 7, 2]]),
        "pixel_values": torch.randn(1, 3, 32, 32),
    }
    before = plain(**inputs)

    adapted = peft.get_peft_model(plain, ALL_LINEAR[method])
    change_adapters(adapted)
    output = adapted(**inputs)
    assert (output.image_embeds - before.image_embeds).abs().max() > 0.01
    merged_output = adapted.merge_and_unload()(**inputs)
    for name in ("text_embeds", "image_embeds"):
        assert output[name].norm().item() == pytest.approx(1.0, abs=1e-6)
        assert_near(merged_output[name], output[name], 1e-6)
