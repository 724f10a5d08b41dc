"""What is computed again in the backward pass has the gradients of what is kept."""

import pytest
import torch
from support.small_models import ALL, batch_of, small_model
from support.training import assert_same_tensors
from torch import nn

from onepeace.layers.recompute import set_recompute


class LoRA(nn.Module):
    """A linear layer with a low-rank branch behind dropout."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.dropout = nn.Dropout(0.5)
        self.a = nn.Linear(base.in_features, 4, bias=False)
        self.b = nn.Linear(4, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.b(self.a(self.dropout(x)))


def gradients(what):
    torch.manual_seed(0)
    model = small_model(*ALL, decoder=None, drop_path=0.3).train()
    for block in model.blocks:
        block.attn.proj = LoRA(block.attn.proj)
        for ffn in block.ffn.values():
            ffn.down = LoRA(ffn.down)
    set_recompute(model, what)
    vectors = model(batch_of(model, range(4)))
    sum(vectors[key][:, 0].sum() for key in ALL).backward()
    gradients = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradients[name] = parameter.grad
    return gradients


@pytest.mark.parametrize("what", ["ffn", "blocks"])
def test_dropout_anywhere_draws_the_same_mask_in_the_backward_pass(what):
    recomputed = gradients(what)
    expected = gradients("none")
    assert {"blocks.0.attn.proj.b.weight", "blocks.1.ffn.audio.down.a.weight"} <= set(recomputed)
    assert_same_tensors(recomputed, expected)
