"""Text, symbols and boxes to ids and back: the original's numbers (tests/golden/ofa), and what is refused."""

import pytest
from safetensors.torch import load_file
from support.generative import FOLDER, golden_json
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from onepeace.errors import UserError
from onepeace.generative.vocabulary import Vocabulary, normalise_caption, normalise_question
from onepeace.processors import ImageProcessor
from onepeace.special_ids import BOS, EOS, PAD, UNK

NUM_WORDS = 50264
HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@pytest.fixture(scope="module")
def tokenizer():
    """The released ids and merges, as far as the golden texts need them."""
    pieces = golden_json("text")["pieces"]
    merges = [tuple(merge.split(" ")) for merge in pieces["merges"]]
    tokenizer = Tokenizer(models.BPE(pieces["vocab"], merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@pytest.fixture(scope="module")
def vocabulary(tokenizer):
    return Vocabulary(tokenizer, NUM_WORDS, mask=True, num_codes=8192, num_bins=1000)


def test_layout_is_the_released_one(vocabulary):
    layout = golden_json("text")["vocabulary"]
    assert len(vocabulary) == layout["size"]
    assert vocabulary.mask == layout["mask"]
    assert vocabulary.codes == range(layout["code_0"], layout["code_8191"] + 1)
    assert vocabulary.bins == range(layout["bin_0"], layout["bin_999"] + 1)


def test_texts_have_the_released_ids(vocabulary):
    cases = golden_json("text")["cases"]
    assert len(cases) == 34
    for case in cases:
        # The original's targets of detection name words by numbers of GPT-2's BPE; ours are texts.
        text = case["decoded"] if " 1048 " in case["text"] else case["text"]
        assert vocabulary.encode(text) == case["ids"], text
        assert vocabulary.decode([BOS, *case["ids"], EOS, PAD]) == case["decoded"]


def test_vocabulary_of_words_alone(tokenizer):
    vocabulary = Vocabulary(tokenizer, NUM_WORDS)
    assert len(vocabulary) == NUM_WORDS
    assert vocabulary.encode("<mask><bin_0><code_1>") == [UNK, UNK, UNK]
    with pytest.raises(UserError, match="bins"):
        vocabulary.bins_of([0, 0, 1, 1], (1, 1), (1, 1))


@pytest.mark.parametrize(("normalise", "name"), [(normalise_question, "question"), (normalise_caption, "caption")])
def test_texts_are_normalised_as_released(normalise, name):
    cases = golden_json("text")["normalised"]
    assert cases
    for case in cases:
        words = normalise(case["text"]).split(" ")
        words = words[: case["max_words"]]  # the original may cut them
        assert " ".join(words) == case[name]


def test_boxes_have_the_released_bins(tokenizer):
    cases = golden_json("boxes")["boxes"]
    assert len(cases) == 17
    for case in cases:
        vocabulary = Vocabulary(
            tokenizer,
            NUM_WORDS,
            num_bins=case["num_bins"],
            box_side=case["max_image_size"],
        )
        sizes = {
            "size": (case["width"], case["height"]),
            "resized": case["resized_height_width"][::-1],
        }
        ids = vocabulary.bins_of(case["box"], **sizes)
        assert ids == [vocabulary.bins[number] for number in case["bins"]]
        box = vocabulary.box_of(ids, **sizes)
        assert box == pytest.approx(case["decoded_box"], abs=1e-3)


def test_box_outside_of_its_picture(vocabulary):
    with pytest.raises(UserError, match="10 x 20"):
        vocabulary.bins_of([0, 0, 11, 20], (10, 20), (512, 512))


@pytest.mark.parametrize(
    ("picture", "name", "normalisation", "levels"),
    [
        ("landscape", "landscape_half", HALF, 0),
        ("landscape", "landscape_imagenet", IMAGENET, 0),
        ("grey", "grey_half", HALF, 0),
        ("portrait", "portrait_half", HALF, 1),
    ],
)
def test_pictures_are_the_released_tensors(picture, name, normalisation, levels):
    """The portrait grows in width and shrinks in height: of its two passes Pillow rounds between them, and the order in
    which the original's Pillow made them differs."""
    expected = load_file(FOLDER / "pictures" / "pixels.safetensors")[name]
    pixels = ImageProcessor(size=48, **normalisation).decode(FOLDER / "pictures" / f"{picture}.png")
    assert pixels.shape == (3, 48, 48)
    assert (pixels - expected).abs().max() <= levels * 2 / 255 + 1e-6
