"""The module for sentence-transformers, under the library itself: our vectors, its options, losses and folders."""

import io
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything reads it: the model card must not ask the network

import numpy as np
import pytest
import torch
from PIL import Image

import onepeace

library = pytest.importorskip("sentence_transformers")

from sentence_transformers.sentence_transformer.losses import (  # noqa: E402
    CachedMultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer  # noqa: E402
from support.embedding import assert_same  # noqa: E402
from support.outside_models import bert  # noqa: E402
from support.small_shards import COLOURS, square  # noqa: E402

from onepeace.plugins.sentence_transformers import load  # noqa: E402

SENTENCES = ["a dog", "two cats on a mat", "rain", "a red bus"]


@pytest.fixture
def small(random_folder):
    return load(random_folder, device="cpu")


@pytest.fixture
def items(samples, sounds):
    """One in each form that an item may have."""
    dog = Image.open(samples / "images/dog.jpg")
    sea_path = str(samples / "images/sea.jpg")
    bark_path = str(samples / "sounds/dog.ogg")
    return [
        "a dog",
        "a sentence that is a good deal longer than the other one",
        {"text": sea_path},
        dog,
        sea_path,
        {"array": sounds[0], "sampling_rate": 16000},
        bark_path,
        samples / "images/cat.jpg",
        {"image": dog, "text": "a bird"},
        {"text": "in the rain", "audio": bark_path},
    ]


def test_vectors_are_those_of_the_embedder(tiny, items):
    model = load("tiny", device="cpu")
    vectors = model.encode(items, batch_size=4, convert_to_tensor=True)

    assert_same(vectors, tiny.encode(items))
    assert model.modalities == ["text", "image", "audio", "message"]
    assert model.get_embedding_dimension() == 256
    assert model.max_seq_length == 65
    nearest = model.similarity(vectors, vectors).argmax(1)
    assert torch.equal(nearest, torch.arange(len(items)))


def test_prompt_goes_before_texts_only(small):
    small.prompts = {"query": "a photo of ", "document": ""}
    picture = Image.new("RGB", (30, 20), "red")

    queries = small.encode_query([*SENTENCES, {"text": "rain"}])

    assert_same(queries, small.encode([f"a photo of {text}" for text in [*SENTENCES, "rain"]]))
    assert_same(small.encode_document(SENTENCES), small.encode(SENTENCES))
    assert not np.allclose(queries[:4], small.encode(SENTENCES), atol=1e-2)
    assert_same(small.encode_query([picture]), small.encode([picture]))


def test_saved_model_keeps_weights_and_settings(small, items, tmp_path):
    original_vectors = small.encode(items)
    small.prompts["query"] = "find "
    small.truncate_dim = 12
    with torch.no_grad():
        small[0].model.heads["text"].weight[:8] *= 2
    for _ in range(2):  # over itself too
        small.save(str(tmp_path))

    loaded = load(tmp_path, device="cpu")
    assert np.array_equal(loaded.encode(items), small.encode(items))
    assert np.array_equal(loaded.encode_query("a dog"), small.encode_query("a dog"))
    assert loaded.encode_query("a dog").shape == (12,)

    small.truncate_dim = None
    vectors = onepeace.load(tmp_path, device="cpu").encode(items)
    assert_same(small.encode(items), vectors)
    assert not np.allclose(vectors, original_vectors, atol=1e-2)


@pytest.fixture(scope="module")
def squares():
    """Coloured squares and their captions, each once."""
    datasets = pytest.importorskip("datasets")
    generator = np.random.default_rng(0)
    captions = [f"a {name} square" for name in COLOURS]
    files = [io.BytesIO(square(colour, generator)) for colour in COLOURS.values()]
    pictures = [Image.open(file) for file in files]
    return datasets.Dataset.from_dict({"caption": captions, "picture": pictures})


def test_trainer_lowers_the_loss(random_folder, squares, tmp_path):
    pytest.importorskip("accelerate")
    model = load(random_folder, device="cpu", dtype="float32")
    loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=3)
    arguments = library.SentenceTransformerTrainingArguments(
        str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=len(squares),
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = library.SentenceTransformerTrainer(model, arguments, train_dataset=squares, loss=loss)

    def value():
        columns = [model.preprocess(squares[name]) for name in ("caption", "picture")]
        return loss(columns, None).item()

    first_value = value()
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    assert logged[0] == pytest.approx(first_value, abs=1e-4)
    assert first_value > logged[1] > value()


def test_model_of_the_library_embeds_texts(tmp_path):
    bert(tmp_path / "bert")
    modules = [Transformer(str(tmp_path / "bert")), Pooling(16)]
    bert_sentences = library.SentenceTransformer(modules=modules, device="cpu")
    bert_sentences.save(str(tmp_path / "saved"))
    texts = ["a dog barks", "the deep low tone of the far away red square", "blue"]

    model = onepeace.load(f"sentence-transformers:{tmp_path / 'saved'}", device="cpu")

    vectors = bert_sentences.encode(texts, convert_to_tensor=True, normalize_embeddings=True)
    assert model.modalities == ("text",)
    assert_same(model.encode_text(texts), vectors)
    assert_same(model.encode_text(texts, batch_size=1), vectors)
