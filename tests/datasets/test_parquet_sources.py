"""Parquet files and folders of them as sources of `shards` and of a fine-tuning."""

import json

import numpy as np
import pytest
from support.images import encoded_image, noise_pixels
from support.small_shards import COLOURS, TONES, square, tone
from support.sounds import encoded_sound, noise

from onepeace.cli import main
from onepeace.data.source import read_source
from onepeace.datasets import parquet as reader
from onepeace.datasets.layout import Skipped
from onepeace.datasets.pairs import from_source
from onepeace.errors import UserError
from onepeace.finetune.own_data import read_own_data

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

NAMES = list(COLOURS)
PICTURES = [square(COLOURS[name], np.random.default_rng(0)) for name in NAMES]


@pytest.fixture
def shards(tmp_path, capsys):
    """Makes shards of a source by the command, which must end with that code; returns stderr."""

    def run(source, *options, code=0):
        assert main(["shards", str(source), "-o", str(tmp_path / "out/set"), *options]) == code
        return capsys.readouterr().err

    return run


@pytest.fixture
def written(tmp_path):
    """The samples of those shards."""

    def read(*modalities):
        return read_source("set-*.tar", modalities or ("image", "text"), tmp_path / "out")

    return read


@pytest.fixture
def parquet_of(tmp_path):
    """Writes rows into a file."""

    def write(rows, name="t.parquet", **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.Table.from_pylist(rows), path, **options)
        return path

    return write


def cell(content, path=None):
    """A picture or sound as datasets stores it."""
    return {"bytes": content, "path": path}


def captioned_rows(count):
    rows = []
    for name, content in zip(NAMES[:count], PICTURES, strict=False):
        rows.append({"image": cell(content, f"{name}.png"), "text": f"a {name} square"})
    return rows


def captions_of(records):
    return [record.captions[0] for record in records]


# ------------------------------------------------------------------ rows


def test_rows_become_samples(parquet_of, shards, written):
    sound = tone(TONES["low"], np.random.default_rng(0))
    captioned = {"image": cell(PICTURES[0], "red.png"), "captions": ["a red square", "red"]}
    labelled = {"audio": cell(sound, None), "label": "low"}
    empty = dict.fromkeys((*captioned, *labelled))
    assert shards(parquet_of([{**empty, **captioned}, {**empty, **labelled}])) == ""

    (red,) = written()
    assert red.inputs["image"] == PICTURES[0]
    assert red.captions == ["a red square", "red"]
    (low,) = written("audio")
    assert low.inputs["audio"] == sound
    assert low.label == "low"


@pytest.mark.parametrize(
    "content",
    ["red.png", PICTURES[0], cell(None, "red.png")],
    ids=["path", "bytes", "struct"],
)
def test_cell_of_a_file_may_be_its_path_or_bytes(tmp_path, parquet_of, shards, written, content):
    (tmp_path / "red.png").write_bytes(PICTURES[0])
    shards(parquet_of([{"image": content, "text": "red"}]))
    (sample,) = written()
    assert sample.inputs["image"] == PICTURES[0]


@pytest.mark.parametrize(
    ("column", "content", "ending"),
    [
        ("image", encoded_image(noise_pixels(4, 4), "JPEG"), ".jpg"),
        ("audio", encoded_sound(noise(800), form="FLAC"), ".flac"),
    ],
)
@pytest.mark.parametrize("path", [None, "name.without-ending", "../../..", "a\0b"])
def test_ending_of_a_file_without_one_is_that_of_its_format(parquet_of, column, content, ending, path):
    row = {column: cell(content, path), "text": "x"}
    (record,) = from_source(parquet_of([row]))
    assert record.inputs[column].suffix == ending
    assert ".." not in record.inputs[column].path.parts


def test_text_that_is_not_unicode_is_left_out(tmp_path):
    table = pa.Table.from_pylist([{"image": cell(picture)} for picture in PICTURES[:2]])
    text = pa.array([b"\xe9", b"fine"], pa.binary()).view(pa.string())
    parquet.write_table(table.append_column("text", text), tmp_path / "t.parquet")
    skipped, record = from_source(tmp_path / "t.parquet")
    assert skipped.reason.startswith("text cannot be read")
    assert record.captions == ["fine"]


def test_own_data_in_cells_is_unpacked(tmp_path, parquet_of):
    """Equal files become one item, and files of one name do not replace one another."""
    rows = []
    for i, picture in enumerate(PICTURES):
        rows.append({"image": cell(picture, f"set/{i % 4}.png"), "text": f"caption {i}"})
    for i, picture in enumerate(PICTURES):
        rows.append({"image": cell(picture, None), "text": f"another caption {i}"})
    for i in range(20):
        dark_square = square((9, 9, 9), np.random.default_rng(i))
        rows.append({"image": cell(dark_square), "text": f"dark {i}"})
    rows.append({"image": cell(b"broken", "broken.png"), "text": "x"})
    source = parquet_of(rows)
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()

    data = read_own_data(source, ("text", "image"), unpacked=unpacked)

    records = data.records["image", "text"]
    paths = [record.inputs["image"] for record in records]
    assert [path.read_bytes() for path in paths[:8]] == PICTURES
    names = [path.relative_to(unpacked).as_posix() for path in paths]
    assert names[:5] == ["set/0.png", "set/1.png", "set/2.png", "set/3.png", "4/set/0.png"]
    assert names[8] == "t_parquet_row_17.png"
    assert len(names) == 28
    assert records[0].captions == ["caption 0", "another caption 0"]
    assert [skipped.where for skipped in data.left_out] == [f"{source} row {len(rows)}"]


# ------------------------------------------------------------------ damaged files


def test_damaged_file_ends_there_with_one_line(parquet_of, monkeypatch):
    monkeypatch.setattr(reader, "BATCH_ROWS", 2)
    damaged = parquet_of(captioned_rows(8), row_group_size=2, use_dictionary=False)
    content = bytearray(damaged.read_bytes())
    start = parquet.ParquetFile(damaged).metadata.row_group(2).column(0).data_page_offset
    content[start : start + 30] = bytes(30)
    damaged.write_bytes(content)

    *records, skipped = from_source(damaged)

    assert isinstance(skipped, Skipped)
    assert skipped.where == f"{damaged} row 5"
    assert "all that follow" in skipped.reason
    assert captions_of(records) == [f"a {name} square" for name in NAMES[:4]]


# ------------------------------------------------------------------ what is read


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_columns_with_other_names(tmp_path, parquet_of, shards, written, suffix):
    (tmp_path / "red.png").write_bytes(PICTURES[0])
    row = {"Img": "red.png", "text": "not this one", "Sentence": "a red square"}
    source = tmp_path / f"t{suffix}"
    if suffix == ".parquet":
        parquet_of([row])
    else:
        source.write_text(json.dumps(row))

    shards(source, "--column", "image=img", "--column", "text=SENTENCE")

    (sample,) = written()
    assert sample.inputs["image"] == PICTURES[0]
    assert sample.captions == ["a red square"]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"columns": {"picture": "image"}}, "picture .* image, audio, text, label"),
        ({"columns": {"text": "words"}}, "'words'.* image, text"),
        ({"columns": {"image": "img"}}, "no column img, audio, .* image, text"),
        ({"split": "train"}, "split 'train'"),
    ],
)
def test_wrong_names_are_refused(parquet_of, options, word):
    source = parquet_of(captioned_rows(1))
    with pytest.raises(UserError, match=word):
        list(from_source(source, **options))


# ------------------------------------------------------------------ data sets with splits and classes


def test_splits_of_parquet_files_are_not_mixed(tmp_path, parquet_of, shards, written):
    rows = captioned_rows(8)
    parquet_of(rows[:2], "hub/data/train-00000-of-00002.parquet")
    parquet_of(rows[2:4], "hub/data/train-00001-of-00002.parquet")
    parquet_of(rows[4:5], "hub/data/test-00000-of-00001.parquet")
    hub = tmp_path / "hub"

    message = shards(hub, code=1)
    assert "test, train" in message
    assert "--split" in message
    message = shards(hub, "--split", "validation", code=1)
    assert "'validation'" in message
    assert "test, train" in message
    shards(hub, "--split", "train")
    assert captions_of(written()) == [row["text"] for row in rows[:4]]


def test_split_of_a_file_is_the_word_nearest_to_its_name(tmp_path, parquet_of):
    parquet_of(captioned_rows(1), "llm-eval/train-00000.parquet")
    parquet_of(captioned_rows(1), "llm-eval/validation/0000.parquet")
    for split, name in (("train", "train-00000.parquet"), ("validation", "0000.parquet")):
        assert [file.name for file in reader.data_files(tmp_path, split)] == [name]


def test_data_set_of_datasets_has_its_pictures_and_class_names(tmp_path, shards, written):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    label = datasets.ClassLabel(names=["cat", "dog"])
    data = datasets.Dataset.from_dict(
        {"image": [cell(picture) for picture in PICTURES[:4]], "label": [1, 0, -1, 1]},
        features=datasets.Features({"image": datasets.Image(), "label": label}),
    )
    data.to_parquet(tmp_path / "exported.parquet")

    shards(tmp_path / "exported.parquet", code=1)  # one row has no label

    samples = written("image")
    assert [sample.label for sample in samples] == ["dog", "cat", "dog"]
    assert [sample.inputs["image"] for sample in samples] == [PICTURES[0], PICTURES[1], PICTURES[3]]
    data.save_to_disk(tmp_path / "saved")
    assert "to_parquet" in shards(tmp_path / "saved", code=1)


def test_class_number_without_a_name_is_left_out(tmp_path):
    table = pa.Table.from_pylist([{"image": cell(PICTURES[0]), "label": 2}])
    label = {"_type": "ClassLabel", "names": ["cat", "dog"]}
    features = json.dumps({"info": {"features": {"label": label}}})
    parquet.write_table(table.replace_schema_metadata({"huggingface": features}), tmp_path / "t.parquet")
    (skipped,) = from_source(tmp_path / "t.parquet")
    assert "label is 2" in skipped.reason
