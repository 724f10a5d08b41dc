"""TokenSequence: what crosses from adapters to blocks, and its checks."""

import pytest
import torch

from onepeace.model import StemOutput, TokenSequence, TokenSpan
from onepeace.model.encoder import attention_bias
from onepeace.model.sequence import padding


def sequence(key, length, batch=2, padded=0, heads=3, own=1):
    """One span; ``padded`` tokens at the end of item 0 are padding; ``own`` bucket matrices."""
    mask = None
    if padded:
        mask = torch.zeros(batch, length, dtype=torch.bool)
        mask[0, length - padded :] = True
    table = torch.randn(length * length, heads)
    buckets = torch.arange(length * length).view(1, length, length).expand(own, -1, -1)
    return TokenSequence(torch.randn(batch, length, 4), mask, (TokenSpan(key, 0, length),), (buckets,), ([table],))


def test_concat_then_split_is_the_identity():
    parts = [sequence("a", 3), sequence("b", 5, padded=2), sequence("c", 1)]
    whole = TokenSequence.concat(parts)
    assert whole.spans == (TokenSpan("a", 0, 3), TokenSpan("b", 3, 8), TokenSpan("c", 8, 9))
    for part in parts:
        (span,) = part.spans
        assert torch.equal(whole.split(whole.tokens)[span.key], part.tokens)
        assert torch.equal(whole.split(whole.padding_mask)[span.key], part.dense_mask())
    nested = TokenSequence.concat([TokenSequence.concat(parts[:2]), parts[2]])
    assert nested.spans == whole.spans
    assert torch.equal(nested.tokens, whole.tokens)
    assert TokenSequence.concat(parts[:1]) is parts[0]


def test_nothing_padded_stays_without_a_mask():
    assert TokenSequence.concat([sequence("a", 3), sequence("b", 2)]).padding_mask is None
    stem = StemOutput(torch.zeros(3, 4, 2), padding(torch.tensor([2, 4, 2]), 4), (4,))
    assert stem.padding_mask.sum(1).tolist() == [2, 0, 2]
    alone = stem.take(torch.tensor([0, 2]), [2, 2])
    assert (alone.padding_mask, alone.grid, alone.tokens.shape) == (None, (2,), (2, 2, 2))


def test_shapes_are_checked():
    tokens, spans, buckets = torch.zeros(2, 4, 3), (TokenSpan("a", 0, 4),), torch.zeros(1, 4, 4, dtype=torch.long)
    TokenSequence(tokens, None, spans, (buckets,), ([],))
    with pytest.raises(ValueError, match=r"padding_mask \(2, 3\) does not fit tokens \(2, 4\)"):
        TokenSequence(tokens, torch.zeros(2, 3, dtype=torch.bool), spans, (buckets,), ([],))
    for wrong in ((), (TokenSpan("a", 0, 3),), (TokenSpan("a", 0, 2), TokenSpan("b", 3, 4)), (TokenSpan("a", 1, 4),)):
        count = len(wrong)
        with pytest.raises(ValueError, match=r"do not tile 0\.\.4"):
            TokenSequence(tokens, None, wrong, (None,) * count, ([],) * count)
    with pytest.raises(ValueError, match=r"buckets \(1, 3, 3\) do not fit"):
        TokenSequence(tokens, None, spans, (buckets[:, :3, :3],), ([],))
    with pytest.raises(ValueError, match=r"buckets \(3, 4, 4\) do not fit"):
        TokenSequence(tokens, None, spans, (buckets.expand(3, -1, -1),), ([],))
    with pytest.raises(ValueError, match="2 bucket matrices, 1 tables, 1 spans"):
        TokenSequence(tokens, None, spans, (buckets, None), ([],))


def test_bias_is_one_broadcast_while_nothing_is_dropped():
    assert attention_bias(sequence("a", 4)).shape == (1, 3, 4, 4)
    joint = attention_bias(TokenSequence.concat([sequence("a", 4), sequence("b", 2)]))
    assert joint.shape == (1, 3, 6, 6)
    assert attention_bias(sequence("a", 4, padded=1)).shape == (2, 3, 4, 4)
    assert attention_bias(sequence("a", 4, own=2)).shape == (2, 3, 4, 4)


def test_bias_equals_loops():
    parts = [sequence("a", 3, own=2), sequence("b", 4, padded=2), sequence("c", 2)]
    # One modality may have no table: it is neither favoured nor hidden.
    bare = TokenSequence(torch.zeros(2, 2, 4), None, (TokenSpan("d", 0, 2),), (None,), ([],))
    whole = TokenSequence.concat([*parts, bare])
    found = attention_bias(whole)
    assert found.shape == (2, 3, 11, 11)
    starts = [span.start for span in whole.spans]
    for b in range(2):
        for i in range(11):
            for j in range(11):
                query, key = (max(s for s, start in enumerate(starts) if start <= place) for place in (i, j))
                expected = torch.zeros(3)
                if query == key < 3:
                    buckets = parts[query].buckets[0]
                    row = buckets[b % len(buckets), i - starts[query], j - starts[query]]
                    expected = parts[query].tables[0][0][row]
                if whole.padding_mask[b, j]:
                    expected = torch.full((3,), -torch.inf)
                assert torch.equal(found[b, :, i, j], expected)


def test_stack_without_tables_still_masks():
    bare = TokenSequence(torch.zeros(1, 3, 4), None, (TokenSpan("a", 0, 3),), (None,), ([],))
    assert attention_bias(bare) is None
    padded = TokenSequence(bare.tokens, torch.tensor([[False, False, True]]), bare.spans, (None,), ([],))
    assert attention_bias(padded).flatten().tolist() == [0.0, 0.0, -torch.inf]
