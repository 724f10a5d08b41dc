"""The words of captions: those that Stanford's tokenizer prints, pinned in tests/golden/ptb_words.json.

The file has pairs of a sentence and what pycocoevalcap 1.2 with Java 17 made of it: captions of Flickr8k, COCO and
other sets, most of them with more than plain words, and sentences made to be difficult. "different" are those that the
rules do not follow, one or more of each kind that ptb_tokenizer.py names.
"""

import shutil

import pytest
from support.golden import golden_json

from onepeace.generative.ptb_tokenizer import ptb_words

GOLDEN = golden_json("ptb_words.json")


def test_words_are_those_of_java():
    assert len(GOLDEN["same"]) > 400
    for text, words in GOLDEN["same"]:
        assert " ".join(ptb_words(text)) == words, text


def test_known_differences_still_differ():
    assert GOLDEN["different"]
    for text, words in GOLDEN["different"]:
        assert " ".join(ptb_words(text)) != words, text


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
def test_golden_file_is_what_java_prints():
    tokenizer = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer").PTBTokenizer()
    pairs = [*GOLDEN["same"], *GOLDEN["different"]]
    captions = {text: [{"caption": text}] for text, _ in pairs}
    assert tokenizer.tokenize(captions) == {text: [words] for text, words in pairs}
