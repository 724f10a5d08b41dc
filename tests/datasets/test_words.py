"""The layout words: texts alone, from a vocabulary and class names."""

import io
import json
import tarfile

from open_clip import IMAGENET_CLASSNAMES

from onepeace.cli import main
from onepeace.data.shards import read_source


def shards(folder, root, *options):
    code = main(["shards", "--layout", "words", str(folder), "-o", str(root), *options])
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


def test_definitions_and_variants_of_captions_widen_the_words(tmp_path):
    (tmp_path / "vocab.txt").write_text("dog\nkite\nsnow\n")
    captions = ["a man rides a brown horse", "it is on"]
    content = json.dumps({"captions": captions}).encode()
    with tarfile.open(tmp_path / "pairs-00000.tar.gz", "w:gz") as shard:
        member = tarfile.TarInfo("a.json")
        member.size = len(content)
        shard.addfile(member, io.BytesIO(content))
    code, samples = shards(
        tmp_path, tmp_path / "root", "definitions=true", f"captions=[{tmp_path}/pairs-*]", "variants=4"
    )
    assert code == 0
    texts = {key: list(texts) for key, *texts in samples}
    cab = texts["word_n02930766"]  # its names in order, one of them in a sentence, what it means
    assert cab[:3] == ["cab", "hack", "taxi"]
    assert "cab" in cab[3]
    assert len(cab[3]) > len("cab")
    assert cab[4].startswith("cab, a car driven by a person")
    assert sum(key.startswith("word_n") for key in texts) > 21_000
    (variants,) = [values for key, values in texts.items() if key.startswith("word_v")]  # no word of the other is long
    assert len(variants) == 4
    for variant in variants:
        pairs = list(zip(variant.split(), captions[0].split(), strict=True))
        changed = [(new, old) for new, old in pairs if new != old]
        assert 1 <= len(changed) <= 3
        assert all(new in ("dog", "kite", "snow") and len(old) > 3 for new, old in changed)
