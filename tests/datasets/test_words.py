"""The layout words: texts alone, from a vocabulary and class names."""

from open_clip import IMAGENET_CLASSNAMES

from onepeace.cli import main
from onepeace.data.shards import read_source


def shards(folder, root):
    code = main(["shards", "--layout", "words", str(folder), "-o", str(root)])
    samples = read_source("train/text/*.tar.gz", ("text",), root).samples if code == 0 else []
    return code, [(sample.key, *sample.captions) for sample in samples]


def test_each_word_comes_alone_and_in_a_sentence(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[unused0]\n##ing\nit\ndog\nkite\ndog2\n1990\nÉté\n")
    code, samples = shards(tmp_path, tmp_path / "root")
    assert code == 0
    words = {word: sentence for _, word, sentence in samples}
    assert set(words) == {"dog", "kite", *IMAGENET_CLASSNAMES}
    assert len(samples) == len(words)
    assert all(word in sentence and sentence != word for word, sentence in words.items())
    assert len({sentence.replace(word, "") for word, sentence in words.items()}) > 4
    assert shards(tmp_path, tmp_path / "again")[1] == samples


def test_a_folder_without_a_vocabulary_is_named(tmp_path, capsys):
    assert shards(tmp_path, tmp_path / "root")[0] == 1
    assert f"{tmp_path}: no vocab.txt; name the model folder of a sentence encoder" in capsys.readouterr().err
    (tmp_path / "vocab.txt").write_text("##a\n")
    assert shards(tmp_path, tmp_path / "root")[0] == 1
    assert "not one of its 2 lines is a word of 3 letters or more" in capsys.readouterr().err
