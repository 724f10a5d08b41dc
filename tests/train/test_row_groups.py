"""Groups of rows of similar length, which are computed together."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from onepeace.train import groups

EXAMPLES = settings(deadline=None, derandomize=True, max_examples=60)
COUNTS = st.integers(1, 40)
SEEDS = st.integers(0, 10**6)


def random_lengths(modalities, count, seed):
    return np.random.default_rng(seed).integers(1, 80, (modalities, count))


def assert_each_row_once(row_groups, count):
    assert np.sort(np.concatenate(row_groups)).tolist() == list(range(count))
    for rows in row_groups:
        assert rows.tolist() == sorted(rows.tolist())


@EXAMPLES
@given(st.integers(1, 3), COUNTS, SEEDS, st.sampled_from([0.0, 0.1, 0.3]))
def test_groups_by_length_respect_max_padding(modalities, count, seed, max_padding):
    lengths = random_lengths(modalities, count, seed)

    row_groups = groups.by_length(lengths, max_padding)

    assert_each_row_once(row_groups, count)
    for rows in row_groups:
        num_computed = groups.padded_tokens(lengths, [rows])
        num_padding = num_computed - lengths[:, rows].sum()
        assert num_padding <= max_padding * num_computed + 1e-9


@EXAMPLES
@given(COUNTS, SEEDS, SEEDS)
def test_sharded_groups_have_sizes_of_any_lengths(count, seed, other_seed):
    first = groups.in_equal_parts(random_lengths(1, count, seed), 2)
    second = groups.in_equal_parts(random_lengths(1, count, other_seed), 2)

    assert_each_row_once(first, count)
    assert [len(rows) for rows in first] == [len(rows) for rows in second]
