"""Groups of rows of similar length, which are computed together."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from onepeace.train import groups

EXAMPLES = settings(deadline=None, derandomize=True, max_examples=60)
SEEDS = st.integers(0, 10**6)


def random_lengths(modalities, count, seed):
    return np.random.default_rng(seed).integers(1, 80, (modalities, count))


def assert_each_row_once(row_groups, count):
    assert np.sort(np.concatenate(row_groups)).tolist() == list(range(count))
    for rows in row_groups:
        assert rows.tolist() == sorted(rows.tolist())


@EXAMPLES
@given(st.integers(1, 3), st.integers(1, 40), SEEDS, st.sampled_from([0.0, 0.1, 0.3]))
def test_groups_by_length_are_not_padded_more_than_allowed(modalities, count, seed, max_padding):
    lengths = random_lengths(modalities, count, seed)
    row_groups = groups.by_length(lengths, max_padding)
    assert_each_row_once(row_groups, count)
    for rows in row_groups:
        computed = groups.padded_tokens(lengths, [rows])
        assert computed - lengths[:, rows].sum() <= max_padding * computed + 1e-9


@EXAMPLES
@given(st.integers(1, 40), SEEDS, SEEDS)
def test_groups_of_sharded_passes_have_the_same_sizes_whatever_the_lengths(count, seed, other_seed):
    ours, theirs = (groups.in_equal_parts(random_lengths(1, count, one), 2) for one in (seed, other_seed))
    assert_each_row_once(ours, count)
    assert [len(rows) for rows in ours] == [len(rows) for rows in theirs]


def test_groups_of_sharded_passes_save_padding():
    lengths = np.array([[10, 1, 10, 1]])
    assert groups.padded_tokens(lengths, groups.in_equal_parts(lengths, 2)) == lengths.sum()
