"""Vectors of the JSON API; a request that is wrong is refused in one line, and no address is fetched."""

import base64

import numpy as np
import pytest
from support.embedding import assert_same

pytest.importorskip("fastapi", reason="the API comes with the extra web")


from support.api import assert_error, encoded, png, post, wav


@pytest.fixture
def embed(client):
    """The data of an answer."""

    def ask(inputs, **options):
        answer = client.post("/v1/embeddings", json={"input": inputs, **options})
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    return ask


def test_vectors_are_those_of_the_model(embed, model, collection):
    picture = collection / "cat.jpg"
    sound = collection / "dog.ogg"
    inputs = [
        "a dog",
        {"image": encoded(picture)},
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{encoded(picture)}"}},
        {"type": "input_audio", "input_audio": {"data": encoded(sound), "format": "ogg"}},
        {"text": "in the snow", "audio": encoded(sound)},
    ]

    entries = embed(inputs, model="text-embedding-3-small", user="somebody")

    vectors = np.array([entry["embedding"] for entry in entries], np.float32)
    assert [entry["index"] for entry in entries] == [0, 1, 2, 3, 4]
    assert_same(vectors[:4], model.encode(["a dog", picture, picture, sound]))
    assert_same(vectors[4:], model.encode([{"text": "in the snow", "audio": sound}]))


def test_vectors_in_base64(embed, model):
    (entry,) = embed("a dog", encoding_format="base64")

    vector = np.frombuffer(base64.b64decode(entry["embedding"]), "<f4").copy()
    assert_same(vector[None], model.encode(["a dog"]))


@pytest.mark.parametrize(
    ("inputs", "status", "field"),
    [
        ([{"audio": "file:///etc/passwd"}], 422, "input[0].audio"),
        (["a", {"image": "/etc/passwd"}], 422, "input[1].image"),
        ([{"image": "A" * 300_000}], 413, "input[0].image"),
        ([{"image": png(700, 900)}] * 2, 413, "input[1].image"),
        ([{"audio": wav(5)}] * 3, 413, "input[2].audio"),
        (["a" * 201], 413, "input[0].text"),
        (["a", "a \ud800"], 422, "input[1].text: has a lone surrogate"),
        ([], 422, "input"),
        ([{"image": png(20_000, 20_000)}], 413, "1000000"),
        ({"text": 5}, 422, "input[0]: text"),
    ],
)
def test_wrong_input_is_refused_in_one_line_and_the_next_is_answered(client, embed, inputs, status, field):
    assert field in assert_error(post(client, "/v1/embeddings", {"input": inputs}), status)
    assert embed("a dog")


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b'{"text":', "application/json"),
        (b"\xff\xd8\xff\xe0", "application/json"),
        (b'{"text": "a dog"}', "text/plain"),
    ],
)
def test_error_of_the_whole_body_names_the_body_and_json(client, body, content_type):
    error = assert_error(
        client.post(
            "/search",
            content=body,
            headers={"content-type": content_type},
        ),
        422,
    )

    assert error.startswith("the body: ")
    assert "json" in error.lower()
