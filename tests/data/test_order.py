"""In which order items come, and which of a batch belong together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onepeace.data.builder import multi_positive_ids, names_of
from onepeace.data.sample import Sample
from onepeace.data.steps import EpochSampler
from onepeace.errors import UserError


@given(
    st.lists(st.tuples(st.integers(1, 9), st.floats(0.1, 3.5)), min_size=1, max_size=3),
    st.integers(0, 99),
)
@settings(deadline=None, derandomize=True, max_examples=50)
def test_an_epoch_has_each_item_as_often_as_its_weight_says(sources, seed):
    sizes, weights = zip(*sources, strict=True)
    if not any(round(weight * size) for size, weight in sources):
        return
    order = EpochSampler(sizes, weights, [seed])
    for epoch in range(2):
        epoch_items = [order[epoch * order.epoch_length + i] for i in range(order.epoch_length)]
        counts = np.bincount(epoch_items, minlength=sum(sizes))
        first = 0
        for size, weight in sources:
            mine = counts[first : first + size]
            assert set(mine) <= {int(weight), int(weight) + 1}
            assert mine.sum() == int(weight) * size + round((weight - int(weight)) * size)
            first += size


def test_epochs_and_seeds_are_different_permutations():
    order = EpochSampler([50], [1.0], [1])
    epochs = [[order[e * 50 + i] for i in range(50)] for e in (0, 1, 0)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(50))
    assert epochs[0] != epochs[1]
    assert epochs[0] == epochs[2]
    assert [EpochSampler([50], [1.0], [2])[i] for i in range(50)] != epochs[0]


def test_rare_items_change_from_epoch_to_epoch():
    order = EpochSampler([40], [0.25], [1])
    epochs = [{order[e * 10 + i] for i in range(10)} for e in range(4)]
    assert all(len(epoch) == 10 for epoch in epochs)
    assert len(set.union(*epochs)) > 20


def test_weights_that_leave_nothing_are_an_error():
    with pytest.raises(UserError, match="leave none"):
        EpochSampler([3], [0.1], [1])


def test_batch_by_source_that_is_too_large_names_the_largest_that_fits():
    with pytest.raises(
        UserError, match=r"leave 5 an epoch, too few for a batch of 6 .* run\.batch_size to 5 or raise a w"
    ):
        EpochSampler([3, 2], [1.0, 1.0], [1], run=6)
    assert EpochSampler([3, 2], [1.0, 1.0], [1], run=5).epoch_length == 5


def sample(captions=(), label=None):
    return Sample("", "", {"text": list(captions)}, {} if label is None else {"label": label})


def grouped(items, drawn):
    return multi_positive_ids([names_of(item, text) for item, text in zip(items, drawn, strict=True)]).tolist()


def test_equal_labels_or_captions_are_one_group():
    items = [sample(["a cat"]), sample(["A cat", "tabby"]), sample(label="Cat"), sample(label="cat"), sample(["dog"])]
    drawn = ["a cat", "tabby", "a cat on a mat", "cat", "dog"]
    group = grouped(items, drawn)
    assert group[0] == group[1]  # a caption in common, even if another one was drawn
    assert group[2] == group[3]
    assert len(set(group)) == 3
    # One text in common joins label and captions.
    assert len(set(grouped(items, ["a cat", "tabby", "a cat", "cat", "dog"]))) == 2


def test_items_without_text_are_all_different():
    assert len(set(grouped([sample(), sample()], ["", ""]))) == 2
    assert len(set(grouped([sample([" "]), sample([" "])], [" ", " "]))) == 2


@given(st.lists(st.tuples(st.sampled_from("aAbcd"), st.sampled_from([None, "x", "y"])), min_size=1, max_size=8))
@settings(deadline=None, derandomize=True, max_examples=50)
def test_same_text_always_means_same_group(pairs):
    group = grouped([sample(label=label) for _, label in pairs], [text for text, _ in pairs])
    for i, (text, label) in enumerate(pairs):
        for j, (other_text, other_label) in enumerate(pairs):
            if text.lower() == other_text.lower() or (label and label == other_label):
                assert group[i] == group[j]
