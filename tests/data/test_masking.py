import json
import math

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
LENGTHS = st.lists(st.integers(1, 90), min_size=1, max_size=6).map(torch.tensor)
SEEDS = st.integers(0, 2**31)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_starts(lengths, seed):
    starts = torch.rand(len(lengths), int(lengths.max()), generator=generator(seed)) < 0.6
    starts[:, 0] = True
    return starts


def check_shapes(keep, masked, lengths):
    """What holds for every mask: CLS and padding stay out of it, keep and masked are each other's complement."""
    assert masked.shape == (len(lengths), int(lengths.max()) + 1)
    assert not masked[:, 0].any()
    for row, hidden, length in zip(keep, masked, lengths.tolist(), strict=True):
        assert not hidden[length + 1 :].any()
        assert row[row >= 0].tolist() == [i for i in range(length + 1) if not hidden[i]]
        assert (row[: (row >= 0).sum()] >= 0).all()


@pytest.mark.parametrize("unit", ["word", "patch", "span"])
@EXAMPLES
@given(lengths=LENGTHS, unimodal=st.floats(0.05, 0.95), joint=st.floats(0.05, 0.95), seed=SEEDS)
def test_masks_hide_the_exact_count(unit, lengths, unimodal, joint, seed):
    starts = random_starts(lengths, seed) if unit == "word" else None
    masks = draw_masks(MaskRates(unit, unimodal, joint), 0, lengths, generator(seed), starts)
    assert set(masks) == {"unimodal", "joint"}
    for keep, masked in masks.values():
        check_shapes(keep, masked, lengths)
    n = [length - (unit == "word") for length in lengths.tolist()]
    assert masks["joint"][1].sum(1).tolist() == [int(k * joint) for k in n]
    if unit == "word":
        words = [int(row[:k].sum()) for row, k in zip(starts, n, strict=True)]
        hidden_words = (masks["unimodal"][1][:, 1:] & starts).sum(1).tolist()
        assert hidden_words == [math.ceil(unimodal * w) for w in words]
    else:
        assert masks["unimodal"][1].sum(1).tolist() == [int(k * unimodal) for k in n]


@EXAMPLES
@given(lengths=LENGTHS, share=st.floats(0.05, 0.95), seed=SEEDS)
def test_words_are_hidden_whole_and_the_end_of_a_text_stays(lengths, share, seed):
    starts = random_starts(lengths, seed)
    keep, masked = draw_masks(MaskRates("word", share), 0, lengths, generator(seed), starts)["unimodal"]
    for row, first, length, kept in zip(masked[:, 1:], starts, lengths.tolist(), keep, strict=True):
        assert not row[length - 1]
        assert length in kept
        assert all(row[i] == row[i - 1] for i in range(1, length - 1) if not first[i])


def test_together_prefers_tokens_that_were_visible_alone():
    lengths = torch.tensor([21, 4, 71])
    starts = torch.ones(3, 71, dtype=torch.bool)
    masks = draw_masks(MaskRates("word", unimodal=0.5, joint=0.4), 0, lengths, generator(), starts)
    alone, together = masks["unimodal"][1], masks["joint"][1]
    assert not (alone & together).any()
    masks = draw_masks(MaskRates("word", unimodal=0.8, joint=0.4), 0, lengths, generator(), starts)
    for alone, together, n in zip(masks["unimodal"][1], masks["joint"][1], [20, 3, 70], strict=True):
        still_visible = n - int(alone.sum())
        assert int((together & ~alone).sum()) == min(int(0.4 * n), still_visible)


def test_audio_counts_equal_the_released_ones(shared):
    golden = json.loads((shared / "golden/preprocess/audio_mask_counts.json").read_text())
    for name, counts in golden.items():
        length, ratio = (part.partition("=")[2] for part in name.split(","))
        masked = mask_spans(torch.tensor([int(length)] * 3), float(ratio), generator())
        assert masked.sum(1).tolist() == counts * 3


@pytest.mark.parametrize("length", [1, 2])
def test_empty_text(length):
    """An empty caption is its end alone, or one token and its end: nothing may be hidden, nothing fails."""
    starts = torch.ones(1, length, dtype=torch.bool)
    masks = draw_masks(MaskRates("word", 0.15, 0.4), 0, torch.tensor([length]), generator(), starts)
    for keep, masked in masks.values():
        check_shapes(keep, masked, torch.tensor([length]))
    assert masks["joint"][0].tolist() == [list(range(length + 1))]


@EXAMPLES
@given(lengths=LENGTHS, share=st.floats(0.01, 0.9), seed=SEEDS, has_end=st.booleans())
def test_drop_keeps_the_exact_count(lengths, share, seed, has_end):
    starts = random_starts(lengths, seed) if has_end else None
    keep, _ = draw_masks(None, share, lengths, generator(seed), starts)["contrastive"]
    for row, length in zip(keep.tolist(), lengths.tolist(), strict=True):
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
