"""The parts of the data: near copies and files named alike lie in one part, and each class in both."""

from pathlib import Path

import numpy as np
import pytest

from onepeace.datasets.layout import Record
from onepeace.errors import UsageError, UserError
from onepeace.finetune import split
from onepeace.finetune.own_data import OwnData, plural
from onepeace.finetune.report import note
from onepeace.finetune.split import divide, near_copies, parts_of

TABLE = Path("/files/table.csv")


@pytest.fixture(autouse=True)
def no_near_copies(monkeypatch):
    monkeypatch.setattr(split, "NEAR", {})


def own_data(names, folder="/files"):
    """A picture for each "class/name"."""
    records = [Record("", name, {"image": Path(folder, name), "text": []}, {"label": name.partition("/")[0]})
               for name in names]  # fmt: skip
    return OwnData({("image", "text"): records}, [])


def files_of(data):
    (parts,) = parts_of(data).values()
    return {part: {record.targets["file"] for record in own} for part, own in parts.items()}


def frames(count, each):
    """The frames of so many videos of each of two classes."""
    return [f"{label}/video{v}-{i}.jpg" for label in ("cat", "dog") for v in range(count) for i in range(each)]


def test_near_copies_are_joined_also_through_others(monkeypatch):
    vectors = np.eye(3)[[0, 1, 2, 0, 1]] + 0.01
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert near_copies(vectors, 0.99) == [(0, 3), (1, 4)]
    monkeypatch.setattr(split, "BLOCK", 2)
    assert near_copies(vectors, 0.99) == [(0, 3), (1, 4)]
    monkeypatch.setattr(split, "NEAR", {"image": 0.9})
    monkeypatch.setattr(split, "load", lambda *_, **__: None)
    angles = np.radians([0, 20, 40, 90, 91, 150] + list(range(200, 334, 33)) * 3)  # 0 and 40 through 20
    monkeypatch.setattr(split, "encode", lambda *_: np.stack([np.cos(angles), np.sin(angles)], axis=1))
    data = own_data([f"{'cat' if i % 2 else 'dog'}/{i}.jpg" for i in range(len(angles))])
    split.grouped(data, TABLE)
    groups = [record.targets["group"] for record in data.records["image", "text"]]
    assert groups[:6] == [0, 0, 0, 1, 1, 2]
    assert len(set(groups)) == 8


def test_files_of_a_group_lie_in_one_part_and_each_class_in_all():
    data, parts = divide(own_data(frames(10, 10)), TABLE, r"(\w+/video\d+)-")
    found = files_of(data)
    videos = {part: {name.partition("-")[0] for name in names} for part, names in found.items()}
    assert sum(map(len, videos.values())) == 20
    assert {part: len(names) for part, names in found.items()} == {"val": 40, "train": 120, "choose": 40}
    assert all({name.partition("/")[0] for name in names} == {"cat", "dog"} for names in videos.values())
    assert parts.groups == 20
    assert "--group" in parts.described()
    assert "near copies" not in parts.described() + note(parts)
    assert "--group" not in divide(own_data(frames(10, 10)), TABLE, None)[1].described()
    # always the same, in whatever order the files come and folders are called
    again, _ = divide(own_data(frames(10, 10)[::-1], "/moved"), Path("/moved/table.csv"), r"(\w+/video\d+)-")
    assert files_of(again) == found


def test_the_group_of_a_pattern_or_all_of_it_counts():
    names = frames(2, 15)
    for pattern, count in ((r"video(\d+)", 2), (r".*video\d+", 4), (".*", 60)):
        assert split.grouped(own_data(names), TABLE, pattern) == count
    for pattern in ("nothing", "("):
        with pytest.raises(UsageError, match="--group"):
            split.grouped(own_data(names), TABLE, pattern)


def test_a_class_that_is_one_group_is_not_held_out_and_named():
    names = [*frames(5, 8), *(f"owl/video0-{i}.jpg" for i in range(20))]
    data, parts = divide(own_data(names), TABLE, r"\w+/video\d+")
    assert parts.not_held_out == ["owl"]
    assert "owl" in parts.described()
    assert not any(name.startswith("owl") for name in files_of(data)["val"])
    with pytest.raises(UserError, match="--group"):
        divide(own_data(names), TABLE, ".*video")


def test_kinds_of_samples_have_plain_names():
    assert plural(("image", "text")) == "images with captions"
    assert plural(("image", "audio", "text"), captions=False) == "images with sounds"
    assert plural(("audio", "text"), captions=False) == "sounds"
