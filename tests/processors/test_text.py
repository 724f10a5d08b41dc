"""Vocabularies and the text processor."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.hub_layouts import golden_vocabulary
from tokenizers import Tokenizer, models, processors

from onepeace.errors import UserError
from onepeace.processors import tokenizer as vocabularies
from onepeace.processors.pieces import clean_text
from onepeace.processors.text import TextProcessor

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "media_text.json").read_text())
CAPTIONS = [
    "A dog barks at the mailman",
    "two dogs run on the beach",
    "it's raining, isn't it?",
    "the quick brown fox jumps over the lazy dog",
    "a photo of <s> and <pad>",
]
# How the released models read text: by the public functions, by the data sets, and with nothing done to it.
WAYS = {
    "api": {"clean": False},
    "data": {},
    "raw": {"clean": False, "lower": False, "prefix_space": False, "max_tokens": None},
}


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Tokenizer:
    """The part of the released vocabulary that the stored texts need, at its own ids, read from files."""
    return vocabularies.from_released(golden_vocabulary(tmp_path_factory.mktemp("bpe"))[0])


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return vocabularies.train_bpe(CAPTIONS, 330)


@pytest.mark.parametrize("way", WAYS)
def test_stored_texts_give_the_ids_of_the_original(released, way):
    processor = TextProcessor(released, **WAYS[way])
    assert len(GOLDEN["cases"]) == 73
    for case in GOLDEN["cases"]:
        assert processor.decode(case["text"]).tolist() == case[way], case["text"]


def test_clean_up_equals_the_originals_data_sets():
    assert [clean_text(case["text"]) for case in GOLDEN["cases"]] == [case["cleaned"] for case in GOLDEN["cases"]]


def test_full_released_vocabulary(shared, tmp_path):
    made = vocabularies.from_released(shared / "official_bpe")
    made.save(str(tmp_path / "tokenizer.json"))
    processor = TextProcessor.from_config({}, tmp_path)
    cases = json.loads((shared / "golden" / "text_cases.json").read_text())["cases"]
    assert [processor.decode(case["text"]).tolist() for case in cases] == [case["dataset_ids"] for case in cases]
    assert processor.vocab_size == 50264


def test_bart_files_give_the_same_vocabulary(released, tmp_path):
    """facebook/bart-base: the same ids, one more for <mask>."""
    ids = {**released.get_vocab(), "<mask>": 50264}
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(GOLDEN["merges"]), encoding="utf-8")
    made = vocabularies.from_released(tmp_path)
    assert made.get_vocab() == released.get_vocab()
    processor = TextProcessor(made)
    for case in GOLDEN["cases"]:
        assert processor.decode(case["text"]).tolist() == case["data"]


def test_released_folder_without_files_says_what_it_needs(tmp_path):
    with pytest.raises(UserError, match=r"dict\.txt.*merges\.txt"):
        vocabularies.from_released(tmp_path)


def test_released_files_of_another_model_are_refused(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({"<s>": 0, "</s>": 1, "<pad>": 2, "<unk>": 3, "a": 4}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(UserError, match="another model"):
        vocabularies.from_released(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4, "b": 5}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(UserError, match="1 of 1 merges"):
        vocabularies.from_released(tmp_path)


@pytest.mark.parametrize("name", ["<s>", "<pad>", "</s>", "<unk>", "a <pad> b </s>"])
def test_names_of_specials_in_a_text_are_ordinary_letters(released, trained, name):
    for vocabulary in (released, trained):
        ids = TextProcessor(vocabulary).decode(name).tolist()
        assert ids[-1] == 2
        assert min(ids[:-1]) > 3


def test_trained_bpe_does_not_depend_on_the_order_of_captions(trained):
    again = vocabularies.train_bpe(reversed(CAPTIONS), 330)
    assert again.to_str() == trained.to_str()
    assert trained.get_vocab_size() == 330
    assert [trained.token_to_id(name) for name in ("<s>", "<pad>", "</s>", "<unk>")] == [0, 1, 2, 3]


def test_trained_bpe_learns_cleaned_words(trained):
    processor = TextProcessor(trained)
    assert len(processor.decode("...Dog")) == 2, "one piece for a frequent word, and eos"
    assert trained.decode(processor.decode("Naïve 日本 \x00").tolist()[:-1]) == " naïve 日本 \x00"


def test_clip_vocabulary_cuts_like_open_clip(tmp_path):
    from open_clip.tokenizer import SimpleTokenizer

    vocabularies.from_open_clip().save(str(tmp_path / "tokenizer.json"))
    processor, clip = TextProcessor.from_config({}, tmp_path), SimpleTokenizer()
    assert processor.vocab_size == clip.vocab_size - 2 + 4
    for text in [*CAPTIONS, "naïve café 日本語 😀😃", "1234 bees", "they'll (surely)...", "x" * 90, ""]:
        assert [i - 4 for i in processor.decode(text).tolist()[:-1]] == clip.encode(clean_text(text))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_text("{}"), "not a tokenizer file"),
        (lambda path: Tokenizer(models.BPE({"a": 0, "b": 1}, [])).save(str(path)), "expected \\[0, 1, 2, 3\\]"),
        (lambda path: without_eos().save(str(path)), "must append </s> alone"),
        (lambda path: with_specials().save(str(path)), "as text"),
    ],
    ids=["missing", "empty", "other ids", "no eos", "special <pad>"],
)
def test_foreign_tokenizer_file_is_refused(tmp_path, make, message):
    make(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match=rf"tokenizer\.json.*{message}"):
        TextProcessor.from_config({}, tmp_path)


def without_eos() -> Tokenizer:
    made = vocabularies.train_bpe(CAPTIONS, 300)
    made.post_processor = processors.ByteLevel()
    return made


def with_specials() -> Tokenizer:
    made = vocabularies.train_bpe(CAPTIONS, 300)
    made.add_special_tokens(["<pad>"])
    return made


def positions_of(processor, text):
    positions, unit = processor.token_positions(text)
    assert unit == "character"
    return positions.tolist()


def test_truncation_is_reported(trained, caplog):
    processor = TextProcessor(trained, max_tokens=5)
    whole = TextProcessor(trained, max_tokens=None).decode("the quick brown fox jumps")
    assert processor.decode("the quick brown fox jumps").tolist() == [*whole[:5].tolist(), 2]
    assert len(positions_of(processor, "the quick brown fox jumps")) == 6
    processor.decode("the quick brown fox jumps over")
    assert len(caplog.records) == 1, "said once per processor"
    assert f"{len(whole) - 1} tokens was cut to its first 5" in caplog.text


@pytest.mark.parametrize("unit", ["x", "dog ", "\ud800\x00", "日"])
def test_only_the_start_of_a_huge_text_is_cut_into_pieces(trained, unit, caplog):
    processor = TextProcessor(trained)
    few, many = unit * (17_000 // len(unit)), unit * (1_000_000 // len(unit))
    assert processor.decode(many).tolist() == processor.decode(few).tolist()
    assert max((record.args[1] for record in caplog.records), default=0) <= 70 * 256 * 4


def test_offsets_point_into_the_prepared_text(released):
    processor, given = TextProcessor(released), "..Hello   SENTENCE İstanbul, \t dog"
    text, positions = processor.prepare(given), positions_of(processor, given)
    pieces = [text[a:b] for a, b in positions]
    assert pieces[:2] == ["hello", "sentence"]
    assert pieces[-3:] == [",", "dog", ""]
    assert positions[-1] == [len(text), len(text)]


def test_empty_text_is_a_space_where_the_released_models_have_one(released):
    assert TextProcessor(released).decode("").tolist() == [1437, 2]
    assert positions_of(TextProcessor(released), "") == [[0, 0], [0, 0]]
    assert TextProcessor(released, prefix_space=False).decode("").tolist() == [2]


any_text = st.text(st.characters(codec=None) | st.sampled_from(" \t\n.#Aİß'<"), max_size=60)


@settings(deadline=None, derandomize=True, max_examples=75)
@given(any_text, st.booleans(), st.booleans(), st.booleans())
def test_any_text_is_read(trained, text, clean, lower, prefix_space):
    processor = TextProcessor(trained, clean=clean, lower=lower, prefix_space=prefix_space, max_tokens=20)
    ids, positions = processor.decode(text), positions_of(processor, text)
    assert ids.dtype == torch.int64
    assert ids[-1] == 2
    assert (ids[:-1] > 3).all()
    assert len(positions) == len(ids) <= 21
    assert all(0 <= a <= b <= len(processor.prepare(text)) for a, b in positions)


def test_collate_pads_on_the_right_with_1(trained):
    processor = TextProcessor(trained)
    samples = [processor.decode(text) for text in ("a", "the quick brown fox")]
    ids = processor.collate(samples)["ids"]
    assert ids.shape == (2, processor.size(samples[1]))
    assert ids[0].tolist() == [*samples[0].tolist(), *[1] * (len(samples[1]) - len(samples[0]))]
    assert ids[1].tolist() == samples[1].tolist()


def test_unknown_setting_names_the_nearest(tmp_path, trained):
    trained.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"processors\.text\.max_token .*did you mean max_tokens"):
        TextProcessor.from_config({"max_token": 3}, tmp_path)
    with pytest.raises(UserError, match="max_tokens is 0"):
        TextProcessor.from_config({"max_tokens": 0}, tmp_path)
    assert TextProcessor.from_config({"max_tokens": 3}, tmp_path).max_tokens == 3
