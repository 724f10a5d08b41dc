"""What an operator sees of a server: metrics for Prometheus, and a line of the log for every request."""

import json
import logging
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from onepeace.serve.responses import error_response

logger = logging.getLogger(__name__)

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SIZES = (1, 2, 4, 8, 16, 32, 64)
ID = re.compile(rb"[\w.:-]{1,128}", re.ASCII)
"""A request's id that is taken over."""


class Metrics(Collector):
    """The metrics of one server.

    Args:
        waiting: returns the numbers of items that wait for the model, by modality.
    """

    def __init__(self, waiting: Callable[[], Mapping[str, int]]) -> None:
        self._waiting = waiting
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self._requests = Counter(
            "onepeace_requests",
            "Requests; errors have status 4xx and 5xx",
            ["path", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "onepeace_request_seconds", "Seconds to answer", ["path"], buckets=SECONDS, registry=self.registry
        )
        self._batches = Histogram(
            "onepeace_batch_size", "Items computed at once", ["modality"], buckets=SIZES, registry=self.registry
        )

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The length of the queue, at the moment of the question."""
        gauge = GaugeMetricFamily("onepeace_queue_length", "Items that wait for the model", labels=["modality"])
        for modality, count in self._waiting().items():
            gauge.add_metric([modality], count)
        yield gauge

    def observe_request(self, path: str, status: int, seconds: float) -> None:
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def observe_batch(self, modality: str, count: int) -> None:
        self._batches.labels(modality).observe(count)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class Observer:
    """ASGI middleware that gives requests an id, counts and logs them, and answers those that fail with an error."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = given if ID.fullmatch(given) else b"%016x" % random.getrandbits(64)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception:
            logger.exception("request %s failed", request_id.decode())
            if not status:
                answer = error_response(500, "internal server error; see the log of the server")
                await answer(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - start
            route = getattr(scope.get("route"), "path", "other")  # of a known set, unlike the path
            self.metrics.observe_request(route, status, seconds)
            fields = {
                "id": request_id.decode(),
                "client": (scope.get("client") or ("",))[0],
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "ms": round(1000 * seconds, 1),
            }
            logger.info("%(client)s %(method)s %(path)s %(status)s in %(ms)s ms, %(id)s", fields)


class JSONLines(logging.Formatter):
    """Formatter of the log: each line is a JSON object, that of a request with its fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {"time": self.formatTime(record), "level": record.levelname.lower()}
        if isinstance(record.args, Mapping):
            line.update(record.args)
        else:
            line["message"] = record.getMessage()
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)
