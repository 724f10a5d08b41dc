"""A user's rows: what belongs together, contradicts itself or is too little."""

import json

import pytest

from onepeace.finetune.own_data import read_own_data
from onepeace.finetune.split import divide

MODALITIES = ("text", "image", "audio")
COLOURS = ("red", "green", "blue", "white")


@pytest.fixture
def labelled_rows(captions_table):
    """48 rows in four classes, the red ones first."""
    rows = []
    for colour in COLOURS:
        for i in range(12):
            rows.append({"image": f"{captions_table.parent}/{colour}{i}.png", "label": colour})
    return rows


@pytest.fixture
def source_of(tmp_path):
    def write(rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        return path

    return write


def test_repeated_rows_are_one_sample(labelled_rows, source_of):
    first, *others = labelled_rows
    repeats = [{**first, "text": text} for text in ("a red square", "red", "red")]
    data = read_own_data(source_of([*repeats, *others]), MODALITIES)
    assert data.count == 48
    assert data.records["image", "text"][0].captions == ["a red square", "red"]


@pytest.mark.usefixtures("no_near_copies")
@pytest.mark.parametrize("has_sound", [False, True])
def test_contradicting_rows_are_left_out(labelled_rows, sounds_in_classes, source_of, has_sound):
    """Also if labels can be used only without a sound that has none, which is too few of its kind."""
    rows = [*labelled_rows, {**labelled_rows[1], "label": "blue"}]
    if has_sound:
        rows.append({"audio": f"{sounds_in_classes}/low/0.wav", "text": "a low tone"})
    source = source_of(rows)

    _, summary = divide(read_own_data(source, MODALITIES), source, None)

    assert summary.files == "47 images in 4 classes"
    assert summary.labels == sorted(COLOURS)
    assert summary.groups == sum(summary.counts.values()) == 47
    lines = {int(where.rpartition(" ")[2]) for where, _ in summary.left_out}
    assert lines == {2, 49, *([50] if has_sound else [])}


def test_labels_need_one_in_every_row(labelled_rows, source_of):
    row_without_label = {**labelled_rows[1], "label": None, "text": "a red square"}
    data = read_own_data(source_of([*labelled_rows, row_without_label]), MODALITIES)
    assert data.count == 49
    assert data.labels == []
    assert "1 of 49 items" in data.described()


@pytest.mark.usefixtures("no_near_copies")
@pytest.mark.parametrize("num_sounds", [1, 2, 3])
def test_kinds_with_too_few_samples_are_left_out(labelled_rows, sounds_in_classes, source_of, num_sounds):
    """One cannot be divided into a part to learn from and a part to measure."""
    rows = [{"audio": f"{sounds_in_classes}/low/{i}.wav", "text": "a low tone"} for i in range(num_sounds)]
    source = source_of(labelled_rows + rows)

    parts, summary = divide(read_own_data(source, MODALITIES), source, None)

    kinds = set(parts["train"])
    assert all(parts[part][keys] for part in ("train", "val") for keys in kinds)
    if num_sounds > 1:
        assert kinds == {("image", "text"), ("audio", "text")}
        assert not summary.labels
    else:
        assert kinds == {("image", "text")}
        assert summary.labels == sorted(COLOURS)
        assert [where for where, _ in summary.left_out] == [f"{source} line 49"]
