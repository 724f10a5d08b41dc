import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onepeace.data.masking import (
    MaskRates,
    draw_masks,
    mask_spans,
    word_starts,
    word_table,
)

EXAMPLES = settings(deadline=None, derandomize=True, max_examples=25)
LENGTHS = st.lists(st.integers(1, 90), min_size=1, max_size=6).map(np.array)
SEEDS = st.integers(0, 2**31)


def generators(count, seed=0):
    return [np.random.default_rng([seed, row]) for row in range(count)]


def draw(rates, dropout, lengths, starts=None, seed=0):
    return draw_masks(rates, dropout, lengths, generators(len(lengths), seed), starts)


def hidden(mask, lengths):
    """(B, L) bool: the masked tokens, without CLS."""
    flat = torch.zeros(len(lengths) * int(lengths.max()), dtype=torch.bool)
    flat[mask.masked] = True
    return flat.view(len(lengths), -1)


def random_starts(lengths, seed):
    starts = torch.from_numpy(np.random.default_rng(seed).random((len(lengths), int(lengths.max()))) < 0.6)
    starts[:, 0] = True
    return starts


def check_mask(mask, lengths):
    """What holds for every mask: CLS and padding stay out of it, keep and masked are each other's complement."""
    real = 0
    of_real = []
    for kept, visible, flags, length in zip(mask.keep, mask.visible, hidden(mask, lengths), lengths, strict=True):
        assert not flags[length:].any()
        assert kept[:visible].tolist() == [0, *(i + 1 for i in range(length) if not flags[i])]
        assert (kept[visible:] == -1).all()
        of_real += [real + i for i in range(length) if flags[i]]
        real += length
    assert mask.masked_of_real.tolist() == of_real


@pytest.mark.parametrize("unit", ["word", "patch", "span"])
@EXAMPLES
@given(lengths=LENGTHS, unimodal=st.floats(0.05, 0.95), joint=st.floats(0.05, 0.95), seed=SEEDS)
def test_masks_hide_the_exact_count(unit, lengths, unimodal, joint, seed):
    starts = random_starts(lengths, seed) if unit == "word" else None
    masks = draw(MaskRates(unit, unimodal, joint), 0, lengths, starts, seed)
    assert set(masks) == {"unimodal", "joint"}
    for mask in masks.values():
        check_mask(mask, lengths)
    counts = {name: hidden(mask, lengths).sum(1).tolist() for name, mask in masks.items()}
    n = [length - (unit == "word") for length in lengths.tolist()]
    assert counts["joint"] == [int(k * joint) for k in n]
    if unit == "word":
        words = [int(row[:k].sum()) for row, k in zip(starts, n, strict=True)]
        hidden_words = (hidden(masks["unimodal"], lengths) & starts).sum(1).tolist()
        assert hidden_words == [math.ceil(unimodal * w) for w in words]
    else:
        assert counts["unimodal"] == [int(k * unimodal) for k in n]


@EXAMPLES
@given(lengths=LENGTHS, share=st.floats(0.05, 0.95), seed=SEEDS)
def test_words_are_hidden_whole_and_the_end_of_a_text_stays(lengths, share, seed):
    starts = random_starts(lengths, seed)
    mask = draw(MaskRates("word", share), 0, lengths, starts, seed)["unimodal"]
    for row, first, length, kept in zip(hidden(mask, lengths), starts, lengths.tolist(), mask.keep, strict=True):
        assert not row[length - 1]
        assert length in kept
        assert all(row[i] == row[i - 1] for i in range(1, length - 1) if not first[i])


def test_together_prefers_tokens_that_were_visible_alone():
    lengths = np.array([21, 4, 71])
    starts = torch.ones(3, 71, dtype=torch.bool)
    masks = draw(MaskRates("word", unimodal=0.5, joint=0.4), 0, lengths, starts)
    assert not (hidden(masks["unimodal"], lengths) & hidden(masks["joint"], lengths)).any()
    masks = draw(MaskRates("word", unimodal=0.8, joint=0.4), 0, lengths, starts)
    both = hidden(masks["unimodal"], lengths), hidden(masks["joint"], lengths)
    for alone, together, n in zip(*both, [20, 3, 70], strict=True):
        still_visible = n - int(alone.sum())
        assert int((together & ~alone).sum()) == min(int(0.4 * n), still_visible)


def test_audio_counts_equal_the_released_ones(shared):
    golden = json.loads((shared / "golden/preprocess/audio_mask_counts.json").read_text())
    for name, counts in golden.items():
        length, ratio = (part.partition("=")[2] for part in name.split(","))
        masked = mask_spans(torch.tensor([int(length)] * 3), float(ratio), generators(3))
        assert masked.sum(1).tolist() == counts * 3


@pytest.mark.parametrize("length", [1, 2])
def test_empty_text(length):
    """An empty caption is its end alone, or one token and its end: nothing may be hidden, nothing fails."""
    starts = torch.ones(1, length, dtype=torch.bool)
    masks = draw(MaskRates("word", 0.15, 0.4), 0, np.array([length]), starts)
    for mask in masks.values():
        check_mask(mask, np.array([length]))
    assert masks["joint"].keep.tolist() == [list(range(length + 1))]


@pytest.mark.parametrize("unit", ["word", "patch", "span"])
def test_mask_of_an_item_does_not_depend_on_its_batch(unit):
    lengths = np.array([30, 7, 60])
    starts = random_starts(lengths, 0) if unit == "word" else None
    masks = draw_masks(MaskRates(unit, 0.3, 0.4), 0.2, lengths, generators(3), starts)
    own_starts = None if starts is None else starts[1:2, :7]
    alone = draw_masks(MaskRates(unit, 0.3, 0.4), 0.2, lengths[1:2], generators(3)[1:2], own_starts)
    for name, mask in alone.items():
        assert hidden(masks[name], lengths)[1, :7].tolist() == hidden(mask, lengths[1:2])[0].tolist()


@EXAMPLES
@given(lengths=LENGTHS, share=st.floats(0.01, 0.9), seed=SEEDS, has_end=st.booleans())
def test_drop_keeps_the_exact_count(lengths, share, seed, has_end):
    starts = random_starts(lengths, seed) if has_end else None
    mask = draw(None, share, lengths, starts, seed)["contrastive"]
    for row, length in zip(mask.keep.tolist(), lengths.tolist(), strict=True):
        kept = [position for position in row if position >= 0]
        assert kept[0] == 0
        assert kept == sorted(set(kept))
        assert len(kept) == length + 1 - int((length - has_end) * share)
        assert not has_end or length in kept


def test_word_starts_of_byte_level_and_of_clip_pieces():
    table = word_table(["<s>", "<pad>", "</s>", "<unk>", "Ġa", "Ġbark", "ing", "!"])
    assert word_starts(torch.tensor([[4, 5, 6, 7, 2, 1]]), table).tolist() == [[True, True, False, False, True, True]]
    table = word_table(["<s>", "<pad>", "</s>", "<unk>", "a</w>", "bark", "ing</w>"])
    assert word_starts(torch.tensor([[4, 5, 6, 5, 6, 2]]), table).tolist() == [[True, True, False, True, False, True]]


def test_released_word_starts(shared):
    import hashlib

    from onepeace.processors.tokenizer import from_released

    golden = json.loads((shared / "golden/word_start.json").read_text())
    vocabulary = from_released(shared / "official_bpe").get_vocab()
    begins = word_table(sorted(vocabulary, key=vocabulary.__getitem__))[:, 0]
    assert len(begins) == golden["vocab"]
    assert int(begins.sum()) == golden["count"]
    assert begins[:64].int().tolist() == golden["first_64"]
    assert begins[-16:].int().tolist() == golden["last_16"]
    assert hashlib.sha256(begins.to(torch.uint8).numpy().tobytes()).hexdigest() == golden["sha256_of_bytes"]
