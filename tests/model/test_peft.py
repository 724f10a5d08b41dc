"""Adapters of peft in our modules, by the names of their linear layers."""

import re

import pytest
import torch

import onepeace

peft = pytest.importorskip("peft")

TARGETS = r"blocks\.\d+\.(attn\.(q|k|v|proj)|ffn\.\w+\.down)"
TEXTS = ["a dog", "waves on a beach"]


def give_it_values(module):
    """An adapter begins with nothing to add."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_only_adapters_train_and_the_model_comes_back(random_folder, tmp_path):
    embedder, other = (onepeace.load(random_folder, device="cpu", modalities=["text", "image"]) for _ in range(2))
    before = embedder.encode_text(TEXTS)
    names = [name for name, _ in embedder.module.named_parameters()]
    config = peft.LoraConfig(r=4, target_modules=TARGETS)
    adapted = peft.get_peft_model(embedder.module, config)
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    depth = len(embedder.module.blocks)
    assert len(trained) == depth * 2 * (4 + 2)
    assert all(re.search(rf"model\.{TARGETS}\.lora_[AB]\.default\.weight$", name) for name in trained)
    assert torch.equal(embedder.encode_text(TEXTS), before)

    give_it_values(adapted)
    changed = embedder.encode_text(TEXTS)
    assert changed.shape == before.shape
    assert (changed - before).abs().max() > 0.05

    adapted.save_pretrained(str(tmp_path))
    loaded = peft.PeftModel.from_pretrained(other.module, str(tmp_path))
    torch.testing.assert_close(other.encode_text(TEXTS), changed, atol=1e-6, rtol=0)
    for whole in (loaded.merge_and_unload(), adapted.merge_and_unload()):
        assert [name for name, _ in whole.named_parameters()] == names
        vectors = onepeace.Embedder(whole, embedder.processors).encode_text(TEXTS)
        torch.testing.assert_close(vectors, changed, atol=1e-5, rtol=0)


ALL_LINEAR = {
    "LoRA": peft.LoraConfig(r=4, target_modules="all-linear"),
    "OFT": peft.OFTConfig(r=0, oft_block_size=4, target_modules="all-linear"),
}
"""One that adds to a layer's output, and one that turns its input."""


@torch.no_grad()
@pytest.mark.parametrize("config", ALL_LINEAR.values(), ids=list(ALL_LINEAR))
def test_adapters_of_every_linear_layer_give_unit_vectors_and_merge(random_folder, config):
    plugin = pytest.importorskip("onepeace.plugins.transformers")
    plain = plugin.OnePeaceModel.from_onepeace(str(random_folder)).eval()
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 2]]), "pixel_values": torch.randn(1, 3, 32, 32)}
    before = plain(**inputs).image_embeds
    adapted = peft.get_peft_model(plain, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn(parameter.shape))
    found, merged = adapted(**inputs), adapted.merge_and_unload()(**inputs)
    assert (found.image_embeds - before).abs().max() > 0.01
    for name in ("text_embeds", "image_embeds"):
        torch.testing.assert_close(found[name].norm(dim=1), torch.ones(1), atol=1e-6, rtol=0)
        torch.testing.assert_close(merged[name], found[name], atol=1e-6, rtol=0)
