"""Parquet files and data set folders of the library datasets as sources of `shards` and of a fine-tuning."""

import io
import json

import numpy as np
import pytest
import soundfile
from PIL import Image
from support.small_shards import COLOURS, TONES, square, tone

from onepeace.cli import main
from onepeace.data.shards import read_source
from onepeace.datasets import arrow
from onepeace.datasets.layout import Skipped
from onepeace.datasets.pairs import from_source
from onepeace.errors import UsageError, UserError
from onepeace.finetune.own_data import read_own_data

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

PICTURES = [square(colour, np.random.default_rng(number)) for number, colour in enumerate(COLOURS.values())]
NAMES = list(COLOURS)


def cell(content, path=None):
    """A picture or sound as datasets stores it."""
    return {"bytes": content, "path": path}


def write_parquet(path, rows, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def captioned(count=8):
    return [{"image": cell(PICTURES[i], f"{NAMES[i]}.png"), "text": f"a {NAMES[i]} square"} for i in range(count)]


@pytest.fixture
def shards(tmp_path):
    """Makes shards of a source; returns the exit code."""

    def run(source, *options):
        return main(["shards", str(source), "-o", str(tmp_path / "out" / "set"), *options])

    return run


def written(tmp_path, *modalities):
    return read_source("set-*.tar", modalities or ("image", "text"), tmp_path / "out")


def test_parquet_rows_become_samples(tmp_path, shards, capsys):
    sound = tone(TONES["low"], np.random.default_rng(0))
    rows = [
        {"image": cell(PICTURES[0], "red.png"), "audio": None, "captions": ["a red square", "red"], "label": None},
        {"image": None, "audio": cell(sound, None), "captions": None, "label": "low"},
    ]
    assert shards(write_parquet(tmp_path / "t.parquet", rows)) == 0
    (red,) = written(tmp_path)
    assert red.inputs["image"] == PICTURES[0]
    assert red.captions == ["a red square", "red"]
    (low,) = written(tmp_path, "audio")
    assert (low.inputs["audio"], low.label) == (sound, "low")
    assert capsys.readouterr().err == ""


def test_files_of_cells_may_be_bytes_or_paths(tmp_path, shards):
    (tmp_path / "red.png").write_bytes(PICTURES[0])
    write_parquet(tmp_path / "paths.parquet", [{"image": "red.png", "text": "by path"}])
    write_parquet(tmp_path / "bytes.parquet", [{"image": PICTURES[1], "text": "by bytes"}])
    write_parquet(tmp_path / "struct.parquet", [{"image": cell(None, "red.png"), "text": "by path in a struct"}])
    assert shards(tmp_path) == 0
    pictures = {sample.captions[0]: sample.inputs["image"] for sample in written(tmp_path)}
    expected = {"by path": PICTURES[0], "by bytes": PICTURES[1], "by path in a struct": PICTURES[0]}
    assert pictures == expected


def encoded_sound(form):
    file = io.BytesIO()
    soundfile.write(file, np.zeros(800), 16000, format=form)
    return file.getvalue()


def encoded_picture(form):
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, form)
    return file.getvalue()


@pytest.mark.parametrize(
    ("column", "content", "ending"),
    [
        ("image", encoded_picture("JPEG"), ".jpg"),
        ("image", encoded_picture("WEBP"), ".webp"),
        ("audio", encoded_sound("FLAC"), ".flac"),
        ("audio", encoded_sound("WAV"), ".wav"),
    ],
)
@pytest.mark.parametrize("path", [None, "name.without-ending", "../../..", "a\0b"])
def test_ending_of_a_file_without_one_is_that_of_its_format(tmp_path, column, content, ending, path):
    source = write_parquet(tmp_path / "t.parquet", [{column: cell(content, path), "text": "x"}])
    (record,) = from_source(source)
    assert record.inputs[column].suffix == ending
    assert ".." not in record.inputs[column].path.parts


def test_bad_rows_are_named_and_the_others_used(tmp_path, shards, capsys):
    good = captioned(2)
    bad = {
        "has no image": {"image": None, "text": "x"},
        "has no caption and no label": {"image": cell(PICTURES[0]), "text": None},
        "not a picture of a known format": {"image": cell(b"nothing"), "text": "x"},
        "the file is empty": {"image": cell(b"", "a.png"), "text": "x"},
        "no such file": {"image": cell(None, "gone.png"), "text": "x"},
        "is an address": {"image": cell(None, "https://example.org/a.png"), "text": "x"},
    }
    source = write_parquet(tmp_path / "t.parquet", [good[0], *bad.values(), good[1]])
    assert shards(source) == 1
    assert [sample.captions for sample in written(tmp_path)] == [["a red square"], ["a green square"]]
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == f"onepeace: {len(bad)} skipped, 2 written:"
    for number, (line, reason) in enumerate(zip(lines, bad, strict=True), 2):
        assert line.startswith(f"  {source} row {number}: ")
        assert reason in line


def test_text_that_is_not_unicode_is_a_bad_row(tmp_path):
    table = pa.Table.from_pylist([{"image": cell(PICTURES[0])}, {"image": cell(PICTURES[1])}])
    text = pa.array([b"\xe9", b"fine"], pa.binary()).view(pa.string())
    parquet.write_table(table.append_column("text", text), tmp_path / "t.parquet")
    bad, good = from_source(tmp_path / "t.parquet")
    assert bad.reason.startswith("text cannot be read")
    assert good.captions == ["fine"]


def test_a_damaged_row_group_is_one_line(tmp_path):
    damaged = write_parquet(tmp_path / "t.parquet", captioned(8), row_group_size=2, use_dictionary=False)
    group = parquet.ParquetFile(damaged).metadata.row_group(2)
    content = bytearray(damaged.read_bytes())
    start = group.column(0).data_page_offset
    content[start : start + 30] = bytes(30)
    damaged.write_bytes(content)
    found = list(from_source(damaged))
    (bad,) = (row for row in found if isinstance(row, Skipped))
    assert found.index(bad) == 4
    assert bad.where == f"{damaged} row 5"
    assert "this row and all up to row 6 cannot be read" in bad.reason
    names = [row.captions[0] for row in found if row is not bad]
    assert names == [f"a {name} square" for name in (*NAMES[:4], *NAMES[6:])]


def test_a_stream_that_is_cut_off_ends_there(tmp_path):
    path = tmp_path / "data.arrow"
    table = pa.Table.from_pylist(captioned(4))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    path.write_bytes(path.read_bytes()[:-1000])
    *good, bad = from_source(path)
    assert [record.captions[0] for record in good] == ["a red square", "a green square"]
    assert bad.where == f"{path} row 3"
    assert "all that follow cannot be read" in bad.reason


def test_a_file_that_is_cut_off_is_one_line(tmp_path, shards, capsys):
    source = write_parquet(tmp_path / "t.parquet", captioned())
    source.write_bytes(source.read_bytes()[:-20])
    assert shards(source) == 1
    assert capsys.readouterr().err.startswith(f"onepeace: {source}: cannot be read (")


def test_rows_are_read_in_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow, "BATCH_ROWS", 3)
    sizes = []
    original = arrow._row

    def counted(number, batch, *others):
        sizes.append(batch.num_rows)
        return original(number, batch, *others)

    monkeypatch.setattr(arrow, "_row", counted)
    assert len(list(from_source(write_parquet(tmp_path / "t.parquet", captioned(8))))) == 8
    assert sizes == [3] * 6 + [2] * 2


def test_other_columns_are_not_read(tmp_path):
    rows = [{**row, "vector": [0.0] * 100} for row in captioned(2)]
    source = write_parquet(tmp_path / "t.parquet", rows)
    (first, _) = arrow.read_arrow(source, lambda names: [name for name in names if name != "vector"])
    assert list(first.cells) == ["image", "text"]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_columns_with_other_names(tmp_path, shards, suffix):
    (tmp_path / "red.png").write_bytes(PICTURES[0])
    row = {"Img": "red.png", "text": "not this one", "Sentence": "a red square"}
    source = tmp_path / f"t{suffix}"
    if suffix == ".parquet":
        write_parquet(source, [row])
    else:
        lines = [json.dumps(row)] if suffix == ".jsonl" else [",".join(row), ",".join(row.values())]
        source.write_text("\n".join(lines))
    assert shards(source, "--column", "image=img", "--column", "text=SENTENCE") == 0
    (sample,) = written(tmp_path)
    assert (sample.inputs["image"], sample.captions) == (PICTURES[0], ["a red square"])


def test_parquet_splits_are_not_mixed(tmp_path, shards, capsys):
    rows = captioned()
    write_parquet(tmp_path / "hub/data/train-00000-of-00002.parquet", rows[:2])
    write_parquet(tmp_path / "hub/data/train-00001-of-00002.parquet", rows[2:4])
    write_parquet(tmp_path / "hub/data/test-00000-of-00001.parquet", rows[4:5])
    assert shards(tmp_path / "hub") == 1
    assert "has the splits test, train; choose one with --split" in capsys.readouterr().err
    assert shards(tmp_path / "hub", "--split", "train") == 0
    assert [sample.captions[0] for sample in written(tmp_path)] == [row["text"] for row in rows[:4]]
    assert shards(tmp_path / "hub", "--split", "validation", "--force") == 1
    assert "has no split 'validation'; it has test, train" in capsys.readouterr().err


@pytest.fixture
def saved(tmp_path):
    """A data set that datasets saved, with a class label, and a dictionary of its splits."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [cell(picture) for picture in PICTURES[:4]], "label": [1, 0, -1, 1]}
    data = datasets.Dataset.from_dict(rows, features=features)
    datasets.disable_progress_bars()
    data.save_to_disk(tmp_path / "saved", num_shards=2)
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(tmp_path / "splits")
    data.to_parquet(tmp_path / "exported.parquet")
    return tmp_path


@pytest.mark.parametrize("source", ["saved", "splits/train", "exported.parquet"])
def test_a_saved_data_set_has_its_pictures_and_class_names(saved, shards, source):
    (saved / "saved/cache-1f2e.arrow").write_bytes(b"of a later transformation")
    assert shards(saved / source) == 1  # one row has no label
    samples = written(saved, "image")
    assert [sample.label for sample in samples] == ["dog", "cat", "dog"]
    assert [sample.inputs["image"] for sample in samples] == [PICTURES[0], PICTURES[1], PICTURES[3]]


def test_a_split_of_a_saved_dictionary(saved, shards, capsys):
    assert shards(saved / "splits") == 1
    assert "has the splits test, train; choose one with --split" in capsys.readouterr().err
    assert shards(saved / "splits", "--split", "test") == 0
    assert [sample.label for sample in written(saved, "image")] == ["dog"]


def test_a_class_number_without_a_name_is_a_bad_row(tmp_path):
    table = pa.Table.from_pylist([{"image": cell(PICTURES[0]), "label": 7}])
    features = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}}}
    parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "t.parquet")
    (bad,) = from_source(tmp_path / "t.parquet")
    assert bad.reason == "label is 7, and the data set has 2 classes"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": {"picture": "image"}}, "picture is no content of a column; known: image, audio, text, label"),
        ({"columns": {"text": "words"}}, "no column 'words'; it has image, text"),
        ({"columns": {"image": "img"}}, "no column img or audio; it has image, text"),
        ({"split": "train"}, "has no split 'train'"),
    ],
)
def test_wrong_names(tmp_path, options, message):
    source = write_parquet(tmp_path / "t.parquet", captioned(1))
    with pytest.raises(UserError, match=message):
        list(from_source(source, **options))


def test_options_that_have_no_effect_are_errors(tmp_path, samples):
    for options in ({"columns": {"image": "img"}}, {"split": "train"}):
        with pytest.raises(UsageError, match="leave out"):
            from_source(samples, **options)
    assert main(["shards", "--layout", "coco", str(tmp_path), "-o", str(tmp_path / "out"), "--split", "train"]) == 2


def test_a_data_set_without_rows_or_files(tmp_path):
    schema = pa.schema({"image": pa.binary(), "text": pa.string()})
    parquet.write_table(schema.empty_table(), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="has no rows"):
        list(from_source(tmp_path / "t.parquet"))
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/state.json").write_text("{}")
    with pytest.raises(UserError, match="no list _data_files"):
        list(from_source(tmp_path / "saved"))


def test_own_data_in_cells_is_unpacked_and_equal_files_are_one(tmp_path):
    rows = [{"image": cell(picture, f"set/{i % 4}.png"), "text": f"caption {i}"} for i, picture in enumerate(PICTURES)]
    rows += [{"image": cell(PICTURES[i], None), "text": f"another caption {i}"} for i in range(8)]
    rows += [{"image": cell(square((9, 9, 9), np.random.default_rng(i))), "text": f"dark {i}"} for i in range(20)]
    rows += [{"image": cell(b"broken", "broken.png"), "text": "x"}]
    source = write_parquet(tmp_path / "t.parquet", rows)
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    data = read_own_data(source, ("text", "image"), unpacked=unpacked)
    records = data.records["image", "text"]
    assert len(records) == 28
    assert records[0].captions == ["caption 0", "another caption 0"]
    assert [record.inputs["image"].read_bytes() for record in records[:8]] == PICTURES
    names = [record.inputs["image"].relative_to(unpacked).as_posix() for record in records]
    assert names[:5] == ["set/0.png", "set/1.png", "set/2.png", "set/3.png", "4/set/0.png"]
    assert names[8] == "t_parquet_row_17.png"
    ((where, reason),) = data.left_out
    assert where == f"{source} row {len(rows)}"
    assert reason.startswith("not a picture of a known format")
