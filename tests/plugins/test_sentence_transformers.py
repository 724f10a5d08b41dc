"""The module for sentence-transformers, under the library itself: our vectors, its options, losses and folders."""

import io
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything reads it: the model card must not ask the network

import numpy as np
import pytest
import torch
from PIL import Image

import onepeace
from onepeace.errors import UserError

library = pytest.importorskip("sentence_transformers")

from sentence_transformers.sentence_transformer.losses import (  # noqa: E402
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer  # noqa: E402
from support.outside_models import bert  # noqa: E402
from support.small_shards import COLOURS, square  # noqa: E402

from onepeace.plugins.sentence_transformers import load  # noqa: E402


@pytest.fixture(scope="module")
def small(random_folder):
    return load(random_folder, device="cpu")


@pytest.fixture
def every_kind(samples):
    """One item of each kind, two of most."""
    dog, sea = Image.open(samples / "images/dog.jpg"), str(samples / "images/sea.jpg")
    tone = {"array": np.sin(np.arange(20000) / 20).astype(np.float32), "sampling_rate": 16000}
    bark = str(samples / "sounds/dog.ogg")
    pairs = [{"image": dog, "text": "a bird"}, {"text": "in the rain", "audio": bark}]
    texts = ["a dog", "a sentence that is a good deal longer than the other one", {"text": sea}]
    return [*texts, dog, sea, tone, bark, samples / "images/cat.jpg", *pairs]


def test_vectors_are_those_of_the_embedder(tiny, every_kind):
    model = load("tiny", device="cpu")
    assert model.modalities == ["text", "image", "audio", "message"]
    assert (model.get_embedding_dimension(), model.max_seq_length) == (256, 65)
    wanted = tiny.encode(every_kind)
    got = model.encode(every_kind, batch_size=4, convert_to_tensor=True)
    assert got.shape == wanted.shape
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    assert torch.equal(model.similarity(wanted, wanted).argmax(1), torch.arange(len(wanted)))


def test_the_length_of_texts_can_be_set_and_is_saved(random_folder, tmp_path):
    model = load(random_folder, device="cpu")
    long, short = "two cats on a mat", model.tokenize(["two cats on a mat"])
    model.max_seq_length = 4
    cut = model.tokenize([long])["text_ids"]
    assert cut.shape[1] == 4 < short["text_ids"].shape[1]
    model.save(str(tmp_path))
    assert load(tmp_path, device="cpu").max_seq_length == 4


def test_its_options_work(small, random_folder):
    texts = ["a dog", "two cats on a mat", "rain", "a red bus"]
    whole = small.encode(texts)
    assert np.allclose(small.encode(texts, truncate_dim=6), whole[:, :6])
    int8 = small.encode(texts, precision="int8")
    assert (int8.dtype, int8.shape, len(np.unique(int8)) > 10) == (np.int8, (4, 16), True)
    small.prompts = {"query": "a photo of ", "document": ""}
    prompted = small.encode_query([*texts, {"text": "rain"}])
    assert np.allclose(prompted, small.encode([f"a photo of {t}" for t in [*texts, "rain"]]), atol=1e-6)
    assert np.allclose(small.encode_document(texts), whole, atol=1e-6)
    assert not np.allclose(prompted[:4], whole, atol=1e-2)
    picture = Image.new("RGB", (30, 20), "red")
    assert np.allclose(small.encode_query([picture]), small.encode([picture]))


def test_a_saved_model_comes_back_and_is_a_model_folder(random_folder, every_kind, tmp_path):
    model = load(random_folder, device="cpu")
    model.prompts["query"], model.truncate_dim = "find ", 12
    with torch.no_grad():
        model[0].model.heads["text"].weight.mul_(torch.linspace(0.1, 2, 16)[:, None])
    for _ in range(2):  # over itself too
        model.save(str(tmp_path / "saved"))
    again = load(tmp_path / "saved", device="cpu")
    assert np.array_equal(again.encode(every_kind), model.encode(every_kind))
    assert np.array_equal(again.encode_query("a dog"), model.encode_query("a dog"))
    assert again.encode_query("a dog").shape == (12,)
    ours = onepeace.load(tmp_path / "saved", device="cpu").encode(every_kind)
    model.truncate_dim = None
    unit = library.SentenceTransformer(modules=[model[0]], device="cpu").encode(every_kind, convert_to_tensor=True)
    torch.testing.assert_close(unit, ours, atol=1e-5, rtol=0)
    assert not torch.allclose(ours, onepeace.load(random_folder, device="cpu").encode(every_kind), atol=1e-2)
    model.append(Dense(16, 14))
    model.save(str(tmp_path / "more"))
    with pytest.raises(UserError, match="trust_remote_code"):
        load(tmp_path / "more")


@pytest.fixture(scope="module")
def pairs():
    """Coloured squares and their captions, each once."""
    datasets = pytest.importorskip("datasets")
    rng = np.random.default_rng(0)
    pictures = [Image.open(io.BytesIO(square(colour, rng))) for colour in COLOURS.values()]
    return datasets.Dataset.from_dict({"caption": [f"a {name} square" for name in COLOURS], "picture": pictures})


def test_its_losses_train_it(random_folder, pairs, tmp_path):
    pytest.importorskip("accelerate")
    model = load(random_folder, device="cpu", dtype="float32")
    loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=3)
    arguments = library.SentenceTransformerTrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=len(pairs), learning_rate=1e-3, logging_steps=1,
        lr_scheduler_type="constant", report_to="none", save_strategy="no", disable_tqdm=True,
        use_cpu=True,
    )  # fmt: skip
    trainer = library.SentenceTransformerTrainer(model, arguments, train_dataset=pairs, loss=loss)

    def value():
        features = [model.preprocess(pairs[column]) for column in ("caption", "picture")]
        return loss(features, None).item()

    before, weight = value(), model[0].model.blocks[0].ffn["image"].down.weight.detach().clone()
    trainer.train()
    logged = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert logged[0] == pytest.approx(before, abs=1e-4)
    assert logged[1] < logged[0]
    assert value() < logged[1]
    assert not torch.equal(model[0].model.blocks[0].ffn["image"].down.weight, weight)


def test_a_loss_in_pieces_is_that_of_the_whole_though_kinds_are_mixed(small, every_kind):
    """Gradient caching cuts a column's features by rows."""
    columns = [every_kind, every_kind[::-1]]
    features = [small.preprocess(column) for column in columns]
    whole = MultipleNegativesRankingLoss(small)(features, None)
    features = [small.preprocess(column) for column in columns]
    pieces = CachedMultipleNegativesRankingLoss(small, mini_batch_size=3)(features, None)
    assert whole.item() > 0.1
    assert pieces.item() == pytest.approx(whole.item(), abs=1e-5)


def test_their_models_embed_texts_here(tmp_path):
    bert(tmp_path / "bert")
    parts = [Transformer(str(tmp_path / "bert")), Pooling(16)]
    theirs = library.SentenceTransformer(modules=parts, device="cpu")
    theirs.save(str(tmp_path / "theirs"))
    model = onepeace.load(f"sentence-transformers:{tmp_path / 'theirs'}", device="cpu")
    texts = ["a dog barks", "the deep low tone of the far away red square", "blue"]
    wanted = theirs.encode(texts, convert_to_tensor=True, normalize_embeddings=True)
    assert model.modalities == ("text",)
    torch.testing.assert_close(model.encode_text(texts), wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.encode_text(texts[::-1], batch_size=1).flip(0), wanted, atol=1e-5, rtol=0)


def test_a_model_of_theirs_that_is_not_here_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nothing answers there
    with pytest.raises(UserError, match=r"nobody/nothing: .* the Hugging Face Hub cannot be reached") as error:
        onepeace.load("sentence-transformers:nobody/nothing", device="cpu")
    assert "\n" not in str(error.value)
