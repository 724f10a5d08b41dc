"""The parts of the data: near copies and files named alike lie in one part, and each class in both."""

from pathlib import Path

import numpy as np
import pytest

from onepeace.datasets.layout import Record
from onepeace.errors import UsageError, UserError
from onepeace.finetune import split as splitting
from onepeace.finetune.own_data import OwnData
from onepeace.finetune.split import assign_groups, divide, near_copies

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


@pytest.mark.parametrize("block", [2, 1024])
def test_near_copies_are_pairs_with_a_cosine(monkeypatch, block):
    monkeypatch.setattr(splitting, "BLOCK", block)
    vectors = np.eye(3)[[0, 1, 2, 0, 1]] + 0.01
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert near_copies(vectors, 0.99) == [(0, 3), (1, 4)]


def test_near_copies_are_joined_through_others(monkeypatch):
    angles = np.radians([0, 20, 40, 90, 91, 150, *range(200, 334, 33)])  # 0 and 40 through 20
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    monkeypatch.setattr(splitting, "NEAR_COPY_COSINE", {"image": 0.9})
    monkeypatch.setattr(splitting, "load", lambda *_, **__: None)
    monkeypatch.setattr(splitting, "encode", lambda *_: vectors)

    data = own_data([f"cat/{number}.jpg" for number in range(len(angles))])

    assert num_groups(data) == 8
    assert [record.targets["group"] for record in data.all_records[:6]] == [0, 0, 0, 1, 1, 2]


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


def test_split_does_not_depend_on_order_and_folder():
    names = frames(10, 10)
    parts, _ = divide(own_data(names), TABLE, PATTERN)
    moved = own_data(reversed(names), "/moved")
    parts_of_moved, _ = divide(moved, Path("/moved/table.csv"), PATTERN)
    assert files_of(parts_of_moved) == files_of(parts)


def test_pattern_compares_its_group_or_all_of_it():
    names = frames(2, 15)
    assert num_groups(own_data(names), r"video(\d+)") == 2
    assert num_groups(own_data(names), r".*video\d+") == 4
    assert num_groups(own_data(names), ".*") == 60


@pytest.mark.parametrize("pattern", ["nothing", "("])
def test_pattern_that_matches_nothing_or_is_none(pattern):
    with pytest.raises(UsageError, match="--group"):
        assign_groups(own_data(frames(1, 2)), TABLE, pattern)


def test_class_of_one_group_is_not_held_out():
    names = [*frames(5, 8), *(f"owl/video0-{i}.jpg" for i in range(20))]
    parts, summary = divide(own_data(names), TABLE, r"\w+/video\d+")
    assert summary.not_held_out == ["owl"]
    assert "owl" in summary.described()
    assert not any(name.startswith("owl") for name in files_of(parts)["val"])
    with pytest.raises(UserError, match="--group"):
        divide(own_data(names), TABLE, ".*video")
