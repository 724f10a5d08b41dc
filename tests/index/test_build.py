"""Building an index: what is known of each file, and where nothing is built."""

import re
import shutil

import numpy as np
import pytest
import soundfile
from PIL import Image
from support.indexes import content, counts, items_by_name
from support.random_model import save_random_model

from onepeace import compiling
from onepeace.errors import UsageError, UserError
from onepeace.index import Index, embed, remove
from onepeace.index.database import writing


def test_long_sound_has_a_vector_for_every_window(build, index, model, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "WINDOW", 1.5)
    monkeypatch.setattr(embed, "HOP", 1.0)
    path = tmp_path / "long.wav"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 16000 * 5), 16000)
    (result,) = model.stream(
        [path],
        long="windows",
        window=1.5,
        hop=1.0,
    )

    build(path)

    (file,) = content(index).values()
    np.testing.assert_allclose(file.vectors, result.windows.vectors.numpy(), atol=1e-5)
    with Index.open(index) as opened, opened.reading() as state:
        spans = [state.matrix.span(row) for row in range(len(state.matrix))]
    assert [span.start for span in spans] == result.windows.starts
    assert [span.end for span in spans] == result.windows.ends


def test_headers_of_files_are_kept(build, index, tmp_path, samples):
    path = tmp_path / "sound.wav"
    soundfile.write(path, np.zeros(16000), 8000)
    build(path, samples / "images" / "dog.jpg")

    items = items_by_name(index)

    with Image.open(samples / "images" / "dog.jpg") as image:
        assert (items["dog.jpg"].width, items["dog.jpg"].height) == image.size
    assert items["sound.wav"].duration == 2.0
    assert items["sound.wav"].date == pytest.approx(path.stat().st_mtime, abs=1e-6)  # two ways to round


def test_text_in_an_encoding_that_says_what_it_is(build, index, model, tmp_path):
    (tmp_path / "a.txt").write_text("a wörd", encoding="utf-16")

    build(tmp_path / "a.txt")

    (file,) = content(index).values()
    assert file.fields["words"].text == "a wörd"
    np.testing.assert_allclose(file.vectors, model.encode_text(["a wörd"]), atol=1e-5)


def test_modality_that_the_model_does_not_read_is_counted(build, tmp_path, samples):
    model = save_random_model(tmp_path / "model", ("text", "image"))

    first = build(samples, model=model)
    second = build(samples, model=model)

    for report in (first, second):
        assert report.left_out == {"audio": 20}
        assert report.problems == []
    assert counts(second) == {"unchanged": 17}


def test_wide_model_is_compiled_for_many_new_files(build, words, index, monkeypatch):
    compiled = []
    monkeypatch.setattr(embed, "COMPILE_FROM", 2)
    monkeypatch.setattr(compiling, "compile_blocks", compiled.append)
    build(words / "0.txt", words / "1.txt")
    assert not compiled
    monkeypatch.setattr(compiling, "MIN_WIDTH", 1)

    build(words / "2.txt")
    assert not compiled

    build(words)
    assert len(compiled) == 1


def test_model_in_another_folder_is_followed(build, update, words, index, tmp_path, random_folder):
    build(words)
    moved = shutil.copytree(random_folder, tmp_path / "moved")

    build(words, model=moved)

    with Index.open(index) as opened:
        assert opened.model == str(moved)
    shutil.rmtree(moved)
    with pytest.raises(UserError, match=rf"made with {moved}; .*--model"):
        update()


def test_other_preprocessing_is_refused(build, words, monkeypatch):
    build(words)
    monkeypatch.setattr("onepeace.processors.VERSION", "next")

    with pytest.raises(UserError, match=r"preprocessing.*\(1\).*\(next\)"):
        build(words)


def test_second_writer_is_refused(build, words, index):
    build(words)

    with writing(index), pytest.raises(UserError, match="another run"):
        build(words)


def test_no_index_of_folders_without_files(build, index, tmp_path):
    (tmp_path / "empty").mkdir()

    with pytest.raises(UsageError, match=f"{tmp_path / 'empty'}$"):
        build(tmp_path / "empty")
    assert not index.exists()


def test_folder_of_files_is_not_proposed_as_the_folder_of_their_index(words, tmp_path):
    with pytest.raises(UserError, match=rf"onepeace index build my.index {re.escape(str(words))}$"):
        Index.open(words)
    with pytest.raises(UserError, match=rf"onepeace index build {re.escape(str(tmp_path / 'new'))} FILES$"):
        Index.open(tmp_path / "new")


def test_no_index_where_there_is_something_else(build, words):
    with pytest.raises(UserError, match="other files"):
        build(words, into=words)
    with pytest.raises(UsageError, match="is a file"):
        build(words, into=words / "0.txt")


def test_remove_stays_out_until_named_again(build, update, words, index):
    (words / "private").mkdir()
    (words / "private" / "secret.txt").write_text("a secret")
    build(words)

    assert remove(index, [words / "private", words / "0.txt"]) == 2

    update()
    build(words)
    assert sorted(content(index)) == [str(words / f"{number}.txt") for number in range(1, 6)]
    build(words / "private")
    update()
    assert str(words / "private" / "secret.txt") in content(index)


def test_remove_of_what_is_not_there(build, words, index):
    build(words)

    with pytest.raises(UsageError, match="nothing"):
        remove(index, ["nothing"])
    with pytest.raises(UsageError, match="empty"):
        remove(index, "")


def test_remove_of_a_folder_above_the_indexed_ones_needs_force(build, words, index):
    (words / "inner").mkdir()
    (words / "inner" / "a.txt").write_text("words")
    build(words / "0.txt", words / "1.txt", words / "inner")

    for folder in ("/", words):
        with pytest.raises(UsageError, match=rf"^{folder}: .*{words}.* and 2 more .*--force"):
            remove(index, [words / "1.txt", folder])
    assert remove(index, [words / "inner"]) == 1
    assert remove(index, "/", force=True) == 2
