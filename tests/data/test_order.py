"""In which order items come, and which of a batch belong together."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from onepeace.data.builder import multi_positive_ids, names_of
from onepeace.data.reader import draw_order
from onepeace.data.sample import Sample


@given(
    st.lists(st.tuples(st.integers(1, 9), st.floats(0.1, 3.5)), min_size=1, max_size=3),
    st.integers(0, 99),
)
@settings(deadline=None, derandomize=True, max_examples=50)
def test_each_item_comes_as_often_as_its_weight_says(sources, seed):
    sizes, weights = zip(*sources, strict=True)
    counts = np.bincount(draw_order(sizes, weights, 1, np.random.default_rng(seed)), minlength=sum(sizes))
    for size, weight in sources:
        mine, counts = counts[:size], counts[size:]
        assert set(mine) <= {int(weight), int(weight) + 1}
        assert mine.sum() == int(weight) * size + round((weight - int(weight)) * size)


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
