"""Making an index and keeping it up to date: what is embedded, what is not embedded again, what leaves."""

import json
import os
import shutil

import numpy as np
import pytest
import soundfile
from PIL import Image
from support.random_model import save_random_model

from onepeace.errors import UserError
from onepeace.index import build as building
from onepeace.index.index import Index, build, remove, update, writing


@pytest.fixture
def photos(tmp_path):
    """A folder with pictures, a long sound, a text, and files that cannot be embedded."""
    folder = tmp_path / "photos"
    (folder / "trip").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, name in enumerate(("a.png", "b.png", "trip/c.png")):
        Image.fromarray(rng.integers(0, 256, (30, 40 + i, 3), np.uint8)).save(folder / name)
    soundfile.write(folder / "long.wav", rng.normal(0, 0.1, 16000 * 12).astype(np.float32), 16000)
    (folder / "note.txt").write_text("a note about a dog")
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "empty.wav").touch()
    return folder


@pytest.fixture
def index_of(random_folder, tmp_path):
    """Builds or updates the index, and gives the report and what is in it then."""

    def run(*paths, **options):
        folder = tmp_path / "i"
        if paths:
            report = build(folder, [str(path) for path in paths], str(random_folder), **options)
        else:
            report = update(folder, **options)
        return report, contents(folder)

    return run


def contents(folder):
    with Index.open(folder) as index:
        return {os.path.basename(i.path): (i, index.store.vectors(i.id)) for i in index.items()}


def test_files_are_embedded_and_described(photos, index_of, model, tmp_path):
    report, found = index_of(photos)
    assert sorted(found) == ["a.png", "b.png", "c.png", "long.wav", "note.txt"]
    assert report.added == 5
    assert {problem.path.name for problem in report.problems} == {"broken.jpg", "empty.wav"}
    picture, vectors = found["c.png"]
    assert (picture.width, picture.height, picture.modality) == (42, 30, "image")
    assert picture.date == pytest.approx((photos / "trip" / "c.png").stat().st_mtime)
    np.testing.assert_allclose(vectors, model.encode_image([photos / "trip" / "c.png"], output="numpy"), atol=1e-5)
    sound, windows = found["long.wav"]
    assert sound.duration == pytest.approx(12.0)
    with Index.open(tmp_path / "i") as index:
        spans = [span for _, span in index.store.spans(sound.id)]
    assert len(windows) == len(spans) > 1
    (cut,) = model.encode_audio(
        [photos / "long.wav"], long="windows", window=spans[0].end, hop=spans[1].start, output="numpy"
    )
    np.testing.assert_allclose(windows, cut.vectors, atol=1e-5)
    assert [(span.start, span.end) for span in spans] == list(zip(cut.starts, cut.ends, strict=True))


def test_nothing_is_embedded_twice(photos, index_of, monkeypatch):
    _, before = index_of(photos)

    def no_model(self):
        raise AssertionError("the model is not needed")

    monkeypatch.setattr(building.Builder, "embedder", property(no_model))
    report, after = index_of()
    assert (report.unchanged, report.embedded, report.known_problems) == (5, 0, 2)
    (photos / "a.png").rename(photos / "trip" / "renamed.png")
    shutil.copyfile(photos / "b.png", photos / "copy.png")
    os.utime(photos / "note.txt", (1, 1))
    report, after = index_of()
    assert (report.moved, report.copied, report.embedded, report.removed) == (1, 1, 0, 0)
    for new, old in (("renamed.png", "a.png"), ("copy.png", "b.png"), ("note.txt", "note.txt")):
        assert np.array_equal(after[new][1], before[old][1])
    assert "a.png" not in after


def test_update_takes_in_what_changed_and_forgets_what_is_gone(photos, index_of, model):
    index_of(photos)
    shutil.copyfile(photos / "trip" / "c.png", photos / "a.png")
    Image.new("RGB", (20, 20), (200, 10, 10)).save(photos / "b.png")
    Image.new("RGB", (20, 20), (10, 200, 10)).save(photos / "new.png")
    Image.new("RGB", (20, 20), (10, 10, 200)).save(photos / "broken.jpg")
    (photos / "note.txt").unlink()
    report, after = index_of()
    assert sorted(after) == ["a.png", "b.png", "broken.jpg", "c.png", "long.wav", "new.png"]
    assert (report.added, report.changed, report.copied, report.removed) == (2, 1, 1, 1)
    for name in ("b.png", "new.png", "broken.jpg"):
        np.testing.assert_allclose(after[name][1], model.encode_image([photos / name], output="numpy"), atol=1e-5)
    assert np.array_equal(after["a.png"][1], after["c.png"][1])


def test_patterns_leave_files_out_of_an_index(photos, index_of):
    (photos / ".onepeaceignore").write_text("trip/\n")
    _, found = index_of(photos, exclude=["*.wav"])
    assert sorted(found) == ["a.png", "b.png", "note.txt"]


def test_removed_files_stay_out_and_missing_folders_are_not_forgotten(photos, index_of, tmp_path):
    index_of(photos)
    assert remove(tmp_path / "i", [str(photos / "trip")]) == 1
    assert "c.png" not in index_of()[1]
    photos.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="not there now"):
        index_of()
    assert len(contents(tmp_path / "i")) == 4


def test_rows_of_a_table_bring_captions_and_fields(photos, index_of, tmp_path):
    rows = [{"image": "a.png", "caption": "a dog", "place": "Rome"}, {"text": "words alone"}, {"image": "none.png"}]
    (photos / "table.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    report, found = index_of(photos / "table.jsonl")
    assert (found["a.png"][0].caption, found["a.png"][0].metadata) == ("a dog", {"place": "Rome"})
    assert found["table.jsonl::2"][0].modality == "text"
    assert [problem.path.name for problem in report.problems] == ["table.jsonl::3"]


def test_a_second_writer_and_another_model_are_refused_by_name(photos, index_of, tmp_path):
    index_of(photos)
    with writing(tmp_path / "i"), pytest.raises(UserError, match="another process is writing"):
        index_of(photos)
    other = save_random_model(tmp_path / "other", ("text", "image"))
    with pytest.raises(UserError, match=r"made with another model, .*model.*, not .*other"):
        build(tmp_path / "i", [str(photos)], str(other))
    assert len(contents(tmp_path / "i")) == 5
