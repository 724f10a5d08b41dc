"""A server of a model alone, as clients of OpenAI's API and operators use it."""

import base64
import io
import json
import logging

import numpy as np
import pytest
import soundfile

pytest.importorskip("fastapi", reason="the API comes with the extra web")

from prometheus_client.parser import text_string_to_metric_families
from support.api import assert_error, model_client, post

from onepeace.serve import endpoints
from onepeace.serve.limits import Limits
from onepeace.serve.observe import JSONLines


@pytest.fixture(scope="module")
def client(model):
    return model_client(model)


def embeddings(client, **body):
    answer = client.post("/v1/embeddings", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_model_alone_has_vectors_and_classes_and_no_files(client, model):
    (listed,) = client.get("/v1/models").json()["data"]
    assert listed["id"] == "model"
    assert listed["embed_dim"] == model.embed_dim
    (entry,) = embeddings(client, input="a dog")["data"]
    assert len(entry["embedding"]) == model.embed_dim
    labels = client.post("/classify", json={"text": "a dog", "labels": ["dog", "cat"]}).json()["labels"]
    assert {label["label"] for label in labels} == {"dog", "cat"}
    for path in ("/", "/about", "/files/1"):
        assert_error(client.get(path), 404)
    assert_error(post(client, "/classify", {"like": 1, "labels": ["dog", "cat"]}), 422)


def test_thousands_of_texts_in_a_request(client):
    answer = embeddings(client, input=[f"text {number}" for number in range(2048)], encoding_format="base64")

    assert [entry["index"] for entry in answer["data"]] == list(range(2048))
    assert "2048" in assert_error(post(client, "/v1/embeddings", {"input": ["a"] * 2049}), 413)


def test_tokens_are_counted(client, model):
    texts = ["a dog", "two dogs in the snow"]
    count = sum(len(model.processors["text"].decode(text)) for text in texts)

    assert embeddings(client, input=texts)["usage"] == {"prompt_tokens": count, "total_tokens": count}


@pytest.mark.parametrize("name", [None, "", "model", "text-embedding-ada-002", "text-embedding-3-small"])
def test_names_of_the_model(client, name):
    assert embeddings(client, input="a", model=name)["model"] == "model"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"input": "a", "model": "gpt-4"}, 404, "'gpt-4' is not served; give 'model'"),
        ({"input": "a", "dimensions": 8}, 422, "dimensions: 8"),
        ({"input": [1, 2, 3]}, 422, "input[0]: token ids"),
        ({"input": [[1, 2], [3]]}, 422, "check_embedding_ctx_length=False"),
        ({"input": ["a", None]}, 422, "input[1]: "),
        ({}, 422, "input: is missing"),
    ],
)
def test_wrong_request_is_named(client, body, status, words):
    assert words in assert_error(post(client, "/v1/embeddings", body), status)


def test_dimension_of_the_model_is_accepted(client, model):
    assert embeddings(client, input="a", dimensions=model.embed_dim)["data"]


def test_item_that_fails_is_named_and_the_others_come(client):
    answer = post(client, "/v1/embeddings", {"input": ["a", {"image": "AAAA"}, 5, "b"], "on_error": "skip"})

    assert [entry["index"] for entry in answer.json()["data"]] == [0, 3]
    assert [error["index"] for error in answer.json()["errors"]] == [1, 2]
    assert "input[1]" in answer.json()["errors"][0]["message"]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/classify"])
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"input": [' + b"[]," * 600_000 + b"[]]}", 413),
        (b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 422),
        (b'{"labels": ' + b'["a"' * 100, 422),
        (b"\xff\xfe", 422),
        (b"[]", 422),
        (b"", 422),
    ],
)
def test_hostile_json_is_refused_before_it_costs_anything(client, path, body, status):
    answer = client.post(path, content=body, headers={"content-type": "application/json"})

    assert "the body: " in assert_error(answer, status)


def metrics(client):
    """Values by name and labels, as Prometheus reads them."""
    values = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            values[(sample.name, *sample.labels.values())] = sample.value
    return values


def test_metrics_as_prometheus_reads_them(model):
    client = model_client(model)
    embeddings(client, input=["a", "b"])
    post(client, "/v1/embeddings", {"input": []})
    client.get("/nothing")

    counted = metrics(client)

    assert counted["onepeace_requests_total", "/v1/embeddings", "200"] == 1
    assert counted["onepeace_requests_total", "/v1/embeddings", "422"] == 1
    assert counted["onepeace_requests_total", "other", "404"] == 1
    assert counted["onepeace_request_seconds_count", "/v1/embeddings"] == 2
    assert counted["onepeace_batch_size_sum", "text"] == 2
    assert counted["onepeace_queue_length", "text"] == 0


@pytest.mark.parametrize(("given", "is_taken"), [("abc-1.2:3", True), ("a b", False), ("x" * 129, False), ("", False)])
def test_request_has_an_id_and_a_line_of_the_log(client, caplog, given, is_taken):
    with caplog.at_level(logging.INFO, "onepeace.serve.observe"):
        answer = client.post("/v1/embeddings", json={"input": "a"}, headers={"x-request-id": given})

    request_id = answer.headers["x-request-id"]
    assert (request_id == given) == is_taken
    (record,) = caplog.records
    assert record.getMessage().endswith(f"POST /v1/embeddings 200 in {record.args['ms']} ms, {request_id}")
    line = json.loads(JSONLines().format(record))
    assert (line["id"], line["path"], line["status"]) == (request_id, "/v1/embeddings", 200)


def test_fault_of_ours_is_json_with_an_id(client, caplog, monkeypatch):
    def fail(*_):
        raise ValueError("a secret")

    monkeypatch.setattr(endpoints, "models", fail)
    with caplog.at_level(logging.CRITICAL, "onepeace"):
        answer = client.get("/v1/models")

    assert "secret" not in assert_error(answer, 500)
    assert answer.headers["x-request-id"]


def test_sound_too_loud_to_be_one_is_named(client):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full(16_000, 1e30, np.float32), 16_000, format="WAV", subtype="FLOAT")
    loud = {"audio": base64.b64encode(buffer.getvalue()).decode()}

    error = assert_error(post(client, "/v1/embeddings", {"input": ["a", loud]}), 422)

    assert error == "input[1].audio: samples of up to 1e+30; those of a sound are from -1 to 1"


def test_limit_of_items(model):
    client = model_client(model, Limits(items=3))

    assert len(embeddings(client, input=["a"] * 3)["data"]) == 3
    assert_error(post(client, "/v1/embeddings", {"input": ["a"] * 4}), 413)
