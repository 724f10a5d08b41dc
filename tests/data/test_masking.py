"""Masks: exact counts, what is never hidden, and that an item's mask does not depend on its batch."""

import hashlib
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onepeace.data.masking import MaskRates, draw_masks, mask_spans, word_starts, word_table
from onepeace.processors.tokenizer import from_released

EXAMPLES = settings(deadline=None, derandomize=True, max_examples=25)
LENGTHS = st.lists(st.integers(1, 90), min_size=1, max_size=6).map(np.array)
SEEDS = st.integers(0, 2**31)
UNITS = pytest.mark.parametrize("unit", ["word", "patch", "span"])


def generators(count, seed=0):
    return [np.random.default_rng([seed, row]) for row in range(count)]


def draw(rates, lengths, starts=None, seed=0, dropout=0.0):
    return draw_masks(rates, dropout, lengths, generators(len(lengths), seed), starts)


def random_starts(lengths, seed):
    """(B, L) bool: the tokens that begin a word."""
    rng = np.random.default_rng(seed)
    starts = rng.random((len(lengths), int(lengths.max()))) < 0.6
    starts[:, 0] = True
    return torch.from_numpy(starts)


def all_start(*shape):
    return torch.ones(*shape, dtype=torch.bool)


def hidden_tokens(mask, lengths):
    """(B, L) bool: the masked tokens, without CLS."""
    hidden = torch.zeros(len(lengths), lengths.max(), dtype=torch.bool)
    hidden.view(-1)[mask.masked] = True
    return hidden


def check_mask(mask, lengths):
    """What holds for every mask: CLS and padding stay out of it, keep and masked are each other's complement."""
    masked_of_real = []
    first_of_row = 0
    hidden = hidden_tokens(mask, lengths)
    for row, length in enumerate(lengths):
        visible_positions = [0]
        for i in range(length):
            if hidden[row, i]:
                masked_of_real.append(first_of_row + i)
            else:
                visible_positions.append(i + 1)
        num_visible = mask.visible[row]
        assert mask.keep[row, :num_visible].tolist() == visible_positions
        assert (mask.keep[row, num_visible:] == -1).all()
        assert not hidden[row, length:].any()
        first_of_row += length
    assert mask.masked_of_real.tolist() == masked_of_real


def assert_words_are_whole(hidden, starts, count):
    """A token is hidden with the one before it unless it begins a word; the end of the text stays."""
    for i in range(1, count):
        assert starts[i] or hidden[i] == hidden[i - 1]
    assert not hidden[count]


# ------------------------------------------------------------------ counts


@UNITS
@EXAMPLES
@given(lengths=LENGTHS, unimodal=st.floats(0.05, 0.95), joint=st.floats(0.05, 0.95), seed=SEEDS)
def test_masks_hide_the_exact_count(unit, lengths, unimodal, joint, seed):
    """The end of a text does not count, and alone, whole words of a text are hidden."""
    starts = random_starts(lengths, seed) if unit == "word" else None
    masks = draw(MaskRates(unit, unimodal, joint), lengths, starts, seed)

    assert set(masks) == {"unimodal", "joint"}
    hidden_alone = hidden_tokens(masks["unimodal"], lengths)
    hidden_jointly = hidden_tokens(masks["joint"], lengths)
    for row, length in enumerate(lengths.tolist()):
        count = length - (unit == "word")
        assert hidden_jointly[row].sum() == int(count * joint)
        if unit == "word":
            num_words = int(starts[row, :count].sum())
            num_hidden_words = (hidden_alone[row] & starts[row]).sum()
            assert num_hidden_words == math.ceil(unimodal * num_words)
            assert_words_are_whole(hidden_alone[row], starts[row], count)
        else:
            assert hidden_alone[row].sum() == int(count * unimodal)
    for mask in masks.values():
        check_mask(mask, lengths)


@EXAMPLES
@given(lengths=LENGTHS, share=st.floats(0.01, 0.9), seed=SEEDS, has_end=st.booleans())
def test_drop_keeps_the_exact_count(lengths, share, seed, has_end):
    starts = random_starts(lengths, seed) if has_end else None
    mask = draw(None, lengths, starts, seed, dropout=share)["contrastive"]

    for positions, length in zip(mask.keep.tolist(), lengths.tolist(), strict=True):
        kept = [position for position in positions if position >= 0]
        assert kept[0] == 0
        assert kept == sorted(set(kept))
        assert len(kept) == length + 1 - int((length - has_end) * share)
        if has_end:
            assert length in kept


def test_audio_counts_equal_the_released_ones(shared):
    golden = json.loads((shared / "golden/preprocess/audio_mask_counts.json").read_text())
    for name, counts in golden.items():  # such as "length=100,ratio=0.55"
        length, ratio = [part.partition("=")[2] for part in name.split(",")]
        lengths = torch.tensor([int(length)] * 3)
        masked = mask_spans(lengths, float(ratio), generators(3))
        assert masked.sum(1).tolist() == counts * 3


# ------------------------------------------------------------------ which tokens


def test_joint_mask_takes_hidden_tokens_if_too_few_were_visible():
    lengths = np.array([21, 4, 71])
    masks = draw(MaskRates("word", unimodal=0.8, joint=0.4), lengths, all_start(3, 71))
    alone = hidden_tokens(masks["unimodal"], lengths)
    newly_hidden = hidden_tokens(masks["joint"], lengths) & ~alone
    for row, length in enumerate(lengths.tolist()):
        count = length - 1  # without the end of the text
        num_visible = count - int(alone[row].sum())
        assert newly_hidden[row].sum() == min(int(0.4 * count), num_visible)


@UNITS
def test_mask_of_an_item_does_not_depend_on_its_batch(unit):
    lengths = np.array([30, 7, 60])
    rates = MaskRates(unit, 0.3, 0.4)
    starts = None
    starts_alone = None
    if unit == "word":
        starts = random_starts(lengths, 0)
        starts_alone = starts[1:2, :7]

    masks = draw_masks(rates, 0.2, lengths, generators(3), starts)
    masks_alone = draw_masks(rates, 0.2, lengths[1:2], generators(3)[1:2], starts_alone)

    for name, mask_alone in masks_alone.items():
        (hidden_alone,) = hidden_tokens(mask_alone, lengths[1:2])
        assert hidden_tokens(masks[name], lengths)[1, :7].tolist() == hidden_alone.tolist()


# ------------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("pieces", "text", "starts"),
    [
        ("Ġa Ġbark ing !", "Ġa Ġbark ing ! </s> <pad>", [1, 1, 0, 0, 1, 1]),
        ("a</w> bark ing</w>", "a</w> bark ing</w> bark ing</w> </s>", [1, 1, 0, 1, 0, 1]),
        ("a bark ##ing ##s !", "a bark ##ing ##s a ! </s>", [1, 1, 0, 0, 1, 1, 1]),
        ("▁a ▁bark ing !", "▁a ▁bark ing ! ▁a </s>", [1, 1, 0, 0, 1, 1]),
    ],
    ids=["byte level", "clip", "WordPiece", "SentencePiece"],
)
def test_word_starts(pieces, text, starts):
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *pieces.split()]
    ids = [vocabulary.index(piece) for piece in text.split()]
    (row,) = word_starts(torch.tensor([ids]), word_table(vocabulary))
    assert row.int().tolist() == starts


def test_word_starts_equal_the_released_ones(shared):
    golden = json.loads((shared / "golden/word_start.json").read_text())
    vocabulary = from_released(shared / "official_bpe").get_vocab()
    begins = word_table(sorted(vocabulary, key=vocabulary.__getitem__))[:, 0]
    assert len(begins) == golden["vocab"]
    assert int(begins.sum()) == golden["count"]
    assert begins[:64].int().tolist() == golden["first_64"]
    assert begins[-16:].int().tolist() == golden["last_16"]
    assert hashlib.sha256(begins.to(torch.uint8).numpy().tobytes()).hexdigest() == golden["sha256_of_bytes"]
