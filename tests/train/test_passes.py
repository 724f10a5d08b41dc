"""How the items of a batch are put into groups that are computed together."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onepeace.train.passes import length_groups


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(0, 10**6), st.sampled_from([0.0, 0.1, 0.3]))
def test_every_row_is_in_one_group_and_no_group_is_padded_more_than_allowed(modalities, count, seed, allowed):
    lengths = torch.randint(1, 80, (modalities, count), generator=torch.Generator().manual_seed(seed))
    groups = length_groups(lengths if modalities > 1 else lengths[0], allowed)
    assert torch.cat(groups).sort().values.tolist() == list(range(count))
    for rows in groups:
        assert rows.tolist() == sorted(rows.tolist())
        part = lengths[:, rows]
        computed = int(part.amax(1).sum()) * len(rows)
        assert computed - int(part.sum()) <= allowed * computed + 1e-9


def test_processes_agree_on_the_number_of_groups(monkeypatch):
    monkeypatch.setattr("onepeace.train.parallel.gather_objects", lambda count: [count, count + 1])
    groups = length_groups(torch.tensor([10, 1, 10, 1]), 0.1, agree=True)
    assert len(groups) == 3
    assert torch.cat(groups).sort().values.tolist() == [0, 1, 2, 3]
