"""TokenSequence: what crosses from adapters to blocks, and its checks."""

from dataclasses import replace

import pytest
import torch

from onepeace.model import StemOutput, TokenSequence, TokenSpan, encoder
from onepeace.model.encoder import attention_bias
from onepeace.model.sequence import padding

HEADS = 3


def sequence(key, length, matrices=1):
    """Two items of one modality."""
    buckets = torch.arange(length * length).view(1, length, length)
    return TokenSequence(
        tokens=torch.randn(2, length, 4),
        padding_mask=None,
        spans=(TokenSpan(key, 0, length),),
        buckets=(buckets.expand(matrices, -1, -1),),
        tables=([torch.randn(length * length, HEADS)],),
    )


def test_stem_output_without_padding_after_take():
    mask = padding(torch.tensor([2, 4, 2]), 4)
    assert mask.sum(1).tolist() == [2, 0, 2]
    stem = StemOutput(torch.zeros(3, 4, 2), mask, grid=(4,))
    taken = stem.take(torch.tensor([0, 2]), [2, 2])
    assert taken.padding_mask is None
    assert taken.grid == (2,)
    assert taken.tokens.shape == (2, 2, 2)


FIELDS = {
    "tokens": torch.zeros(2, 4, 3),
    "padding_mask": None,
    "spans": (TokenSpan("a", 0, 4),),
    "buckets": (torch.zeros(1, 4, 4, dtype=torch.long),),
    "tables": ([],),
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("padding_mask", torch.zeros(2, 3, dtype=torch.bool)),
        ("buckets", (torch.zeros(1, 3, 3),)),
        ("buckets", (torch.zeros(3, 4, 4),)),
        ("buckets", (torch.zeros(1, 4, 4), None)),
    ],
)
def test_shapes_that_do_not_fit(name, value):
    TokenSequence(**FIELDS)
    with pytest.raises(ValueError, match=name.removesuffix("s")):
        TokenSequence(**{**FIELDS, name: value})


@pytest.mark.parametrize(
    "spans",
    [
        (),
        (TokenSpan("a", 0, 3),),
        (TokenSpan("a", 1, 4),),
        (TokenSpan("a", 0, 2), TokenSpan("b", 3, 4)),
    ],
)
def test_spans_that_do_not_tile_the_tokens(spans):
    fields = {
        **FIELDS,
        "spans": spans,
        "buckets": (None,) * len(spans),
        "tables": ([],) * len(spans),
    }
    with pytest.raises(ValueError, match="tile"):
        TokenSequence(**fields)


def test_bias_has_rows_for_each_item_where_tokens_are_dropped():
    assert attention_bias(sequence("a", 4))[0].shape == (1, HEADS, 4, 4)
    joint = TokenSequence.concat([sequence("a", 4), sequence("b", 2)])
    assert attention_bias(joint)[0].shape == (1, HEADS, 6, 6)
    dropped = TokenSequence.concat([sequence("a", 4), sequence("b", 2, matrices=2)])
    assert attention_bias(dropped)[0].shape == (2, HEADS, 6, 6)


def test_long_padded_items_share_a_bias_on_a_gpu(monkeypatch):
    """A bias for each item would take 64 times the memory for 64 clips of 15 s."""
    monkeypatch.setattr(encoder, "FOLDED", ())
    length = encoder.SHORT + 1
    padded = replace(sequence("a", length), padding_mask=padding(torch.tensor([length, 5]), length))

    bias, beside = attention_bias(padded)

    assert bias.shape == (1, HEADS, length, length)
    assert torch.equal(beside, padded.padding_mask)
