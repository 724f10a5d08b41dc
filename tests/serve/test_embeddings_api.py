"""Vectors of the JSON API; a request that is wrong is refused in one line, and no address is fetched."""

import base64

import numpy as np
import pytest
from support.embedding import assert_same

pytest.importorskip("fastapi", reason="the API comes with the extra web")


from support.api import ADDRESS, encoded, message, png, post, wav


def test_vectors_of_texts_pictures_and_sounds_are_those_of_the_model(client, model, collection):
    picture = collection / "cat.jpg"
    sound = collection / "dog.ogg"
    inputs = [
        "a dog",
        {"image": encoded(picture)},
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{encoded(picture)}"}},
        {"type": "input_audio", "input_audio": {"data": encoded(sound), "format": "ogg"}},
        {"text": "in the snow", "audio": encoded(sound)},
    ]
    answer = client.post("/v1/embeddings", json={"input": inputs, "model": "any", "user": "somebody"}).json()
    vectors = np.array([entry["embedding"] for entry in answer["data"]], np.float32)
    assert [entry["index"] for entry in answer["data"]] == [0, 1, 2, 3, 4]
    assert_same(vectors[:4], model.encode(["a dog", picture, picture, sound]))
    mix = model.encode([{"text": "in the snow", "audio": sound}])
    assert_same(vectors[4:], mix)
    in_base64 = client.post("/v1/embeddings", json={"input": inputs[:2], "encoding_format": "base64"}).json()
    buffers = [base64.b64decode(entry["embedding"]) for entry in in_base64["data"]]
    assert_same(np.stack([np.frombuffer(buffer, "<f4") for buffer in buffers]), vectors[:2])
    model_card = client.get("/v1/models").json()["data"][0]
    assert model_card["embed_dim"] == vectors.shape[1]


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"input": [{"image": ADDRESS}]}, 422, "input[0].image"),
        ({"input": [{"audio": "file:///etc/passwd"}]}, 422, "input[0].audio"),
        ({"input": ["a", {"image": "/etc/passwd"}]}, 422, "input[1].image"),
        ({"input": [{"image": "bm8gcGljdHVyZQ=="}]}, 422, "input[0].image"),
        ({"input": ["a", {"audio": "bm8gc291bmQ="}]}, 422, "input[1].audio"),
        ({"input": [{"image": "A" * 300_000}]}, 413, "input[0].image"),
        ({"input": [{"image": png(700, 900)}] * 2}, 413, "input[1].image"),
        ({"input": [{"audio": wav(5)}] * 3}, 413, "input[2].audio"),
        ({"input": ["a" * 201]}, 413, "input[0].text"),
        ({"input": ["a"] * 6}, 413, "input"),
        ({"input": ["a" * 200] * 3}, 413, "input[2].text"),
        ({"input": []}, 422, "input"),
        ({"input": [{"image": png(20_000, 20_000)}]}, 413, "1000000"),
        ({"input": [""]}, 422, "input[0]"),
        ({"input": [[1, 2]]}, 422, "input[0]"),
        ({"input": {"text": 5}}, 422, "input[0]: text"),
        ({"input": {"text": "a", "weights": {"text": 1}}}, 422, "weights"),
        ({"input": "a", "dimensions": 3}, 422, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, 422, "encoding_format"),
        ({}, 422, "input"),
    ],
)
def test_wrong_request_is_refused_in_one_line_and_the_next_is_answered(client, body, status, field):
    assert field in message(post(client, "/v1/embeddings", body), status)
    assert client.post("/v1/embeddings", json={"input": "a dog"}).status_code == 200


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"input": NaN}', b'{"input": 1e999}'])
def test_body_that_is_no_json_is_refused(client, body):
    answer = client.post("/v1/embeddings", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert message(answer, answer.status_code)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "application/json"),
        (b'{"text":', "application/json"),
        (b"\xff\xd8\xff\xe0", "application/json"),
        (b'{"text": "a dog"}', "text/plain"),
    ],
)
def test_error_of_the_whole_body_names_the_body_and_json(client, body, kind):
    error = message(client.post("/search", content=body, headers={"content-type": kind}), 422)
    assert error.startswith("the body: ")
    assert "json" in error.lower()
