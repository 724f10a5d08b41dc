"""The parts of the data: near copies and files named alike lie in one part, and each class in both."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onepeace.datasets.layout import Record
from onepeace.errors import UsageError, UserError
from onepeace.finetune import split as splitting
from onepeace.finetune.own_data import OwnData
from onepeace.finetune.split import assign_groups, divide, hold_out, near_copies, parts_of

TABLE = Path("/files/table.csv")
KIND = ("image", "text")


def own_data(names, folder="/files"):
    """A picture for each "class/name"."""
    records = []
    for name in names:
        inputs = {"image": Path(folder, name), "text": []}
        records.append(Record("", name, inputs, {"label": label_of(name)}))
    return OwnData({KIND: records}, [])


def label_of(name):
    return name.partition("/")[0]


def files_of(parts):
    """Names of the files by part."""
    return {part: {record.targets["file"] for record in records[KIND]} for part, records in parts.items()}


def num_groups(data, pattern=None):
    assign_groups(data, TABLE, pattern)
    return len({record.targets["group"] for record in data.all_records})


def frames(num_videos, num_frames):
    """The frames of so many videos of each of two classes."""
    names = []
    for label in ("cat", "dog"):
        for video in range(num_videos):
            names += [f"{label}/video{video}-{frame}.jpg" for frame in range(num_frames)]
    return names


def test_near_copies_are_joined_through_others(monkeypatch):
    angles = np.radians([0, 20, 40, 90, 91, 150, *range(200, 334, 33)])  # 0 and 40 through 20
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    monkeypatch.setattr(splitting, "NEAR_COPY_COSINE", {"image": 0.9})
    monkeypatch.setattr(splitting, "load", lambda *_, **__: None)
    monkeypatch.setattr(splitting, "encode", lambda *_: vectors)

    data = own_data([f"cat/{number}.jpg" for number in range(len(angles))])

    assert num_groups(data) == 8
    assert [record.targets["group"] for record in data.all_records[:6]] == [0, 0, 0, 1, 1, 2]


@pytest.mark.usefixtures("no_near_copies")
def test_records_with_a_common_file_are_joined():
    data = own_data(["cat/0.jpg", "cat/1.jpg", "dog/0.jpg", "cat/1.jpg"])
    assert num_groups(data) == 3
    numbers = [record.targets["group"] for record in data.all_records]
    assert numbers[1] == numbers[3]


PATTERN = r"(\w+/video\d+)-"


def test_group_lies_in_one_part_and_each_class_in_all():
    parts, summary = divide(own_data(frames(10, 10)), TABLE, PATTERN)

    num_files = {}
    num_videos = 0
    for part, names in files_of(parts).items():
        num_files[part] = len(names)
        assert {label_of(name) for name in names} == {"cat", "dog"}
        num_videos += len({name.partition("-")[0] for name in names})
    assert num_files == {"val": 40, "train": 120, "choose": 40}
    assert num_videos == summary.groups == 20


@pytest.mark.parametrize("folder", ["/moved", "/moved/deeper"])
def test_split_does_not_depend_on_order_and_folder(folder):
    names = frames(10, 10)
    parts, _ = divide(own_data(names), TABLE, PATTERN)
    moved = own_data(reversed(names), folder)
    parts_of_moved, _ = divide(moved, Path("/moved/table.csv"), PATTERN)
    for part, files in files_of(parts).items():
        assert {name.removeprefix("deeper/") for name in files_of(parts_of_moved)[part]} == files


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    st.dictionaries(st.tuples(st.sampled_from("abc"), st.sampled_from(["image", "audio"])), st.integers(2, 40)),
    st.integers(5, 40),
)
def test_same_share_of_each_class_and_kind_is_held_out(sizes, most):
    """Of files that are alone in their groups: a fifth, or less where that would be more than enough."""
    records = []
    for (label, modality), size in sizes.items():
        for number in range(size):
            inputs = {modality: Path(f"/files/{label}{number}")}
            targets = {"label": label, "group": len(records), "file": f"{label}{number}"}
            records.append(Record("", "", inputs, targets))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splitting, "MOST_HELD_OUT", most)
        rest, held_out = hold_out(records)

    assert len(rest) + len(held_out) == len(records)
    share = min(0.2, most / max(1, len(records)))
    for (label, modality), size in sizes.items():
        count = sum(record.label == label and modality in record.inputs for record in held_out)
        assert count >= 1
        assert count == 1 or abs(count - share * size) <= 0.5


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 8)), min_size=1, max_size=12))
def test_groups_are_held_out_whole_and_at_most_half_of_a_class(groups):
    records = []
    for group, (label, size) in enumerate(groups):
        for number in range(size):
            targets = {"label": label, "group": group, "file": f"{group}-{number}"}
            records.append(Record("", "", {"image": Path(f"/{group}-{number}")}, targets))

    rest, held_out = hold_out(records)

    assert {record.targets["group"] for record in rest}.isdisjoint(record.targets["group"] for record in held_out)
    assert sorted(map(id, [*rest, *held_out])) == sorted(map(id, records))
    for label in "ab":
        sizes = [size for other, size in groups if other == label]
        count = sum(record.label == label for record in held_out)
        assert 2 * count <= max(sum(sizes), 0.4 * sum(sizes) + max(sizes, default=0))
        assert count or not sizes or 2 * min(sizes) > sum(sizes)


def test_weights_are_chosen_by_twelve_files_or_more():
    """With fewer, all that are not held out are trained on."""
    num_chosen = set()
    for count in range(65, 85):
        data = own_data([f"cat/{number}.jpg" for number in range(count)])
        assign_groups(data, TABLE, ".*")
        parts = files_of(parts_of(data))
        num_chosen.add(len(parts.get("choose", [])))
        assert sum(map(len, parts.values())) == count
    assert sorted(num_chosen) == [0, 12, 13]


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(1, 4))
def test_near_copies_are_all_pairs_of_close_vectors(angles, block):
    radians = np.radians(np.array(angles) * 20.0)
    vectors = np.stack([np.cos(radians), np.sin(radians)], axis=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splitting, "BLOCK", block)
        pairs = near_copies(vectors, np.cos(np.radians(20)) - 1e-9)
    expected = {(i, j) for j in range(len(angles)) for i in range(j) if abs(angles[i] - angles[j]) <= 1}
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == expected


def test_pattern_compares_its_group_or_all_of_it():
    names = frames(2, 15)
    assert num_groups(own_data(names), r"video(\d+)") == 2
    assert num_groups(own_data(names), r".*video\d+") == 4
    assert num_groups(own_data(names), r"(cat|dog)/video\d+") == 2
    assert num_groups(own_data(names), ".*") == 60


@pytest.mark.parametrize("pattern", ["nothing", "("])
def test_pattern_that_matches_nothing_or_is_none(pattern):
    with pytest.raises(UsageError, match="--group"):
        assign_groups(own_data(frames(1, 2)), TABLE, pattern)


def test_class_that_is_too_small_without_what_is_left_out_is_refused():
    """Three sounds of owls are one group, so that none can be held out; four pictures are too few."""
    data = own_data([*(f"cat/{number}.jpg" for number in range(20)), *(f"owl/{number}.jpg" for number in range(4))])
    sounds = [Record("", "", {"audio": Path("/files/owl.wav"), "text": []}, {"label": "owl"}) for _ in range(3)]
    with pytest.raises(UserError, match="class 'owl' has 4 usable items"):
        divide(OwnData({**data.records, ("audio", "text"): sounds}, []), TABLE, ".*")


def test_class_of_one_group_is_not_held_out():
    names = [*frames(5, 8), *(f"owl/video0-{i}.jpg" for i in range(20))]
    parts, summary = divide(own_data(names), TABLE, r"\w+/video\d+")
    assert summary.not_held_out == ["owl"]
    assert "owl" in summary.described()
    assert not any(name.startswith("owl") for name in files_of(parts)["val"])
    with pytest.raises(UserError, match="--group"):
        divide(own_data(names), TABLE, ".*video")
