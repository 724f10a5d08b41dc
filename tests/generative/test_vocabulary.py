"""Text, symbols and boxes to ids and back: the original's numbers (tests/golden/ofa), and what is refused."""

import pytest
from safetensors.torch import load_file
from support.generative import FOLDER, golden_json, small_generator
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from onepeace.errors import UserError
from onepeace.generative.vocabulary import Vocabulary, normalise_caption, normalise_question
from onepeace.processors import ImageProcessor

HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def released() -> Vocabulary:
    """The released vocabulary's ids and merges, as far as the golden texts need them."""
    pieces = golden_json("text")["pieces"]
    tokenizer = Tokenizer(models.BPE(pieces["vocab"], [tuple(one.split(" ")) for one in pieces["merges"]]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return Vocabulary(tokenizer, 50264, mask=True, num_codes=8192, num_bins=1000)


def test_layout_is_the_released_one():
    vocabulary, layout = released(), golden_json("text")["vocabulary"]
    assert len(vocabulary) == layout["size"]
    assert vocabulary.mask == layout["mask"]
    assert (vocabulary.codes[0], vocabulary.codes[-1]) == (layout["code_0"], layout["code_8191"])
    assert (vocabulary.bins[0], vocabulary.bins[-1]) == (layout["bin_0"], layout["bin_999"])


def test_texts_have_the_released_ids():
    vocabulary, cases = released(), golden_json("text")["cases"]
    assert len(cases) == 34
    for case in cases:
        # The original's targets of detection name words by numbers of GPT-2's BPE; ours are texts.
        text = case["decoded"] if " 1048 " in case["text"] else case["text"]
        assert vocabulary.encode(text) == case["ids"], text
        assert vocabulary.decode([0, *case["ids"], 2, 1]) == case["decoded"]


def test_words_and_symbols_mix():
    vocabulary = released()
    ids = vocabulary.encode(' what is the complete text of " <mask> "?')
    assert ids == [*vocabulary.encode(' what is the complete text of "'), vocabulary.mask, *vocabulary.encode(' "?')]


def test_vocabulary_of_words_alone_knows_no_symbols():
    vocabulary = Vocabulary(released().tokenizer, 50264)
    assert len(vocabulary) == 50264
    assert vocabulary.encode("<mask><bin_0><code_1>") == [3, 3, 3]
    with pytest.raises(UserError, match="no bins"):
        vocabulary.bins_of([0, 0, 1, 1], (1, 1), (1, 1))


def test_questions_and_captions_are_normalised_as_released():
    cases = golden_json("text")["normalised"]
    assert cases
    for case in cases:
        for normalise, name in ((normalise_question, "question"), (normalise_caption, "caption")):
            words = normalise(case["text"]).split(" ")  # the original may cut them
            assert " ".join(words[: case["max_words"]]) == case[name]


def test_boxes_have_the_released_bins():
    cases = golden_json("boxes")["boxes"]
    assert len(cases) == 17
    for case in cases:
        vocabulary = Vocabulary(released().tokenizer, 50264, num_bins=case["num_bins"], box_side=case["max_image_size"])
        size, resized = (case["width"], case["height"]), tuple(case["resized_height_width"][::-1])
        ids = vocabulary.bins_of(case["box"], size, resized)
        assert [one - vocabulary.bins[0] for one in ids] == case["bins"]
        assert vocabulary.box_of(ids, size, resized) == pytest.approx(case["decoded_box"], abs=1e-3)


def test_words_are_no_box():
    vocabulary = small_generator().vocabulary
    with pytest.raises(ValueError, match="not a box"):
        vocabulary.box_of([5, *vocabulary.bins[:3]], (10, 10), (10, 10))
    with pytest.raises(UserError, match="outside of its picture of 10 x 20"):
        vocabulary.bins_of([0, 0, 11, 20], (10, 20), (512, 512))


@pytest.mark.parametrize(("name", "levels"), [("landscape", 0), ("grey", 0), ("portrait", 1)])
def test_pictures_are_the_released_tensors(name, levels):
    """The portrait grows in width and shrinks in height: of its two passes Pillow rounds between them, and the order in
    which the original's Pillow made them differs."""
    wanted = load_file(FOLDER / "pictures" / "pixels.safetensors")
    pixels = ImageProcessor(size=48, **HALF).decode(FOLDER / "pictures" / f"{name}.png")
    assert pixels.shape == (3, 48, 48)
    assert (pixels - wanted[f"{name}_half"]).abs().max() <= levels * 2 / 255 + 1e-6
    if name == "landscape":
        pixels = ImageProcessor(size=48, **IMAGENET).decode(FOLDER / "pictures" / f"{name}.png")
        assert (pixels - wanted["landscape_imagenet"]).abs().max() <= 1e-6
