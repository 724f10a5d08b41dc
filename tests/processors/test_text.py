"""Vocabularies and the text processor."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.broken_files import assert_refused
from support.golden import golden_json
from support.hub_layouts import golden_vocabulary
from tokenizers import Tokenizer, models, processors

from onepeace.errors import UserError
from onepeace.processors import tokenizer as vocabularies
from onepeace.processors.text import TextProcessor
from onepeace.processors.tokenizer import clean_text

GOLDEN = golden_json("media_text.json")
CASES = GOLDEN["cases"]
CAPTIONS = [
    "A dog barks at the mailman",
    "two dogs run on the beach",
    "it's raining, isn't it?",
    "the quick brown fox jumps over the lazy dog",
    "a photo of <s> and <pad>",
]
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Tokenizer:
    """The part of the released vocabulary that the stored texts need, at its own ids, read from files."""
    folder, *_ = golden_vocabulary(tmp_path_factory.mktemp("bpe"))
    return vocabularies.from_released(folder)


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return vocabularies.train_bpe(CAPTIONS, 330)


@pytest.fixture(scope="module")
def processor(trained):
    return TextProcessor(trained)


def load(folder, **settings):
    return TextProcessor.from_config(settings, folder)


def ids_of(processor, text):
    return processor.decode(text).tolist()


# Released vocabularies


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("api", {"clean": False}),
        ("data", {}),
        ("raw", {"clean": False, "lower": False, "prefix_space": False, "max_tokens": None}),
    ],
    ids=["public functions", "data sets", "nothing done to it"],
)
def test_stored_texts_give_the_ids_of_the_original(released, field, options):
    processor = TextProcessor(released, **options)

    assert len(CASES) == 73
    for case in CASES:
        assert ids_of(processor, case["text"]) == case[field], case["text"]


def test_full_released_vocabulary(shared, tmp_path):
    tokenizer = vocabularies.from_released(shared / "official_bpe")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    processor = TextProcessor.from_config({}, tmp_path)

    assert processor.vocab_size == 50264
    golden = json.loads((shared / "golden" / "text_cases.json").read_text())
    for case in golden["cases"]:
        assert ids_of(processor, case["text"]) == case["dataset_ids"]


def write_bart(folder, ids, merges=""):
    """Files as facebook/bart-base has them."""
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")


def test_bart_files_give_the_same_vocabulary(released, tmp_path):
    """They have one more token, <mask>."""
    ids = {**released.get_vocab(), "<mask>": 50264}
    write_bart(tmp_path, ids, "\n".join(GOLDEN["merges"]))

    tokenizer = vocabularies.from_released(tmp_path)

    assert tokenizer.get_vocab() == released.get_vocab()
    for case in CASES:
        assert ids_of(TextProcessor(tokenizer), case["text"]) == case["data"]


def test_released_files_with_other_specials_are_refused(tmp_path):
    write_bart(tmp_path, {"<s>": 0, "</s>": 1, "<pad>": 2, "<unk>": 3, "a": 4})
    assert_refused(vocabularies.from_released, tmp_path, "another model")


def test_released_files_with_other_merges_are_refused(tmp_path):
    tokens = [*SPECIALS, "a", "b"]
    write_bart(tmp_path, dict(zip(tokens, range(6), strict=True)), "a b")
    assert_refused(vocabularies.from_released, tmp_path, "1 of 1 merges")


@pytest.mark.parametrize("vocabulary", ["released", "trained"])
@pytest.mark.parametrize("text", [*SPECIALS, "a <pad> b </s>"])
def test_names_of_specials_in_a_text_are_ordinary_letters(request, vocabulary, text):
    processor = TextProcessor(request.getfixturevalue(vocabulary))
    *ids, end = ids_of(processor, text)

    assert end == 2
    assert min(ids) > 3


# Other vocabularies


def test_trained_bpe_does_not_depend_on_the_order_of_captions(trained):
    again = vocabularies.train_bpe(reversed(CAPTIONS), 330)

    assert again.to_str() == trained.to_str()
    assert trained.get_vocab_size() == 330
    assert [trained.token_to_id(name) for name in SPECIALS] == [0, 1, 2, 3]


def test_trained_bpe_learns_cleaned_words(trained, processor):
    assert len(ids_of(processor, "...Dog")) == 2, "one piece for a frequent word, and eos"
    assert trained.decode(ids_of(processor, "Naïve 日本 \x00")[:-1]) == " naïve 日本 \x00"


def test_extended_bpe_reads_known_texts_as_before_and_new_ones_in_fewer_pieces(trained, processor):
    german = ["zwei hunde am strand", "hunde am strand", "İki köpek", "iki köpek"]
    extended = vocabularies.extend_bpe(trained, german, 350)

    assert extended.get_vocab_size() == 350
    assert extended.get_vocab(with_added_tokens=False).items() >= trained.get_vocab(with_added_tokens=False).items()
    new = TextProcessor(extended)
    for caption in CAPTIONS:
        assert ids_of(new, caption) == ids_of(processor, caption)
    assert len(ids_of(new, german[0])) < len(ids_of(processor, german[0]))
    assert ids_of(new, "İki köpek") == ids_of(new, "iki ko\u0308pek")


def test_vocabulary_is_extended_to_more_pieces_than_it_has(trained):
    with pytest.raises(UserError, match="vocab_size 300 is less than the 330 pieces"):
        vocabularies.extend_bpe(trained, CAPTIONS, 300)


def test_clip_vocabulary_cuts_like_open_clip(tmp_path):
    from open_clip.tokenizer import SimpleTokenizer

    vocabularies.from_open_clip().save(str(tmp_path / "tokenizer.json"))
    processor = TextProcessor.from_config({}, tmp_path)
    clip = SimpleTokenizer()

    assert processor.vocab_size == clip.vocab_size - 2 + 4
    for text in (*CAPTIONS, "naïve café 日本語 😀😃", "1234 bees", "they'll (surely)...", "x" * 90, ""):
        assert [i - 4 for i in ids_of(processor, text)[:-1]] == clip.encode(clean_text(text)), text


def without_eos() -> Tokenizer:
    tokenizer = vocabularies.train_bpe(CAPTIONS, 300)
    tokenizer.post_processor = processors.ByteLevel()
    return tokenizer


def with_special_pad() -> Tokenizer:
    tokenizer = vocabularies.train_bpe(CAPTIONS, 300)
    tokenizer.add_special_tokens(["<pad>"])
    return tokenizer


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Tokenizer(models.BPE({"a": 0, "b": 1}, [])), r"\[0, 1, 2, 3\]"),
        (without_eos, "must append </s>"),
        (with_special_pad, "as text"),
    ],
    ids=["other ids", "no eos", "special <pad>"],
)
def test_foreign_tokenizer_file_is_refused(tmp_path, make, words):
    make().save(str(tmp_path / "tokenizer.json"))
    assert_refused(load, tmp_path, rf"tokenizer\.json.*{words}")


# The processor


def positions_of(processor, text):
    positions, unit = processor.token_positions(text)
    assert unit == "character"
    return positions.tolist()


def test_truncation_is_reported_once(trained, caplog):
    processor = TextProcessor(trained, max_tokens=5)
    whole = ids_of(TextProcessor(trained, max_tokens=None), "the quick brown fox jumps")

    assert ids_of(processor, "the quick brown fox jumps") == [*whole[:5], 2]
    assert len(positions_of(processor, "the quick brown fox jumps")) == 6
    processor.decode("the quick brown fox jumps over")
    (record,) = caplog.records
    assert f"{len(whole) - 1} tokens was cut to its first 5" in record.getMessage()


@pytest.mark.parametrize(
    "unit",
    [
        "x",
        "dog ",
        "\ud800\x00",
        "日",
    ],
)
def test_only_the_start_of_a_huge_text_is_tokenized(processor, unit, caplog):
    large = unit * (17_000 // len(unit))
    huge = unit * (1_000_000 // len(unit))

    assert ids_of(processor, huge) == ids_of(processor, large)
    for record in caplog.records:
        assert record.args[1] <= 70 * 256 * 4


def test_offsets_point_into_the_prepared_text(released):
    processor = TextProcessor(released)
    text = "..Hello   SENTENCE İstanbul, \t dog"
    prepared = processor.prepare(text)

    positions = positions_of(processor, text)

    pieces = [prepared[start:end] for start, end in positions]
    assert pieces[:2] == ["hello", "sentence"]
    assert pieces[-3:] == [",", "dog", ""]
    assert positions[-1] == [len(prepared), len(prepared)]


def test_empty_text_is_a_space_where_the_released_models_have_one(released):
    processor = TextProcessor(released)

    assert ids_of(processor, "") == [1437, 2]
    assert positions_of(processor, "") == [[0, 0], [0, 0]]
    assert ids_of(TextProcessor(released, prefix_space=False), "") == [2]


ANY_TEXT = st.text(st.characters(codec=None) | st.sampled_from(" \t\n.#Aİß'<"), max_size=60)


@settings(deadline=None, derandomize=True, max_examples=75)
@given(text=ANY_TEXT, clean=st.booleans(), lower=st.booleans(), prefix_space=st.booleans())
def test_any_text_is_read(trained, text, clean, lower, prefix_space):
    processor = TextProcessor(
        trained,
        clean=clean,
        lower=lower,
        prefix_space=prefix_space,
        max_tokens=20,
    )
    ids = processor.decode(text)
    positions = positions_of(processor, text)

    assert ids.dtype == torch.int64
    assert ids[-1] == 2
    assert (ids[:-1] > 3).all()
    assert len(positions) == len(ids) <= 21
    for start, end in positions:
        assert 0 <= start <= end <= len(processor.prepare(text))


def test_collate_pads_on_the_right_with_1(processor):
    short = processor.decode("a")
    long = processor.decode("the quick brown fox")
    padding = [1] * (len(long) - len(short))

    ids = processor.collate([short, long])["ids"]

    assert ids.tolist() == [short.tolist() + padding, long.tolist()]
    assert processor.size(long) == len(long)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_token": 3}, r"processors\.text\.max_token .*max_tokens"),
        ({"max_tokens": 0}, "max_tokens is 0"),
    ],
)
def test_wrong_setting_is_an_error(tmp_path, trained, options, words):
    trained.save(str(tmp_path / "tokenizer.json"))
    assert_refused(lambda folder: load(folder, **options), tmp_path, words)
