"""A web server on this machine."""

import threading
from collections import Counter
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

LOGIN = b"<!DOCTYPE html><title>Please log in</title>"


@contextmanager
def serving(handler):
    """The address of a server with this handler of requests."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class Requests:
    """The requests that a server got, and how it answers those of a file below a folder of one of these names:

    - "500", "403": that status;
    - "cut": the last byte of what was promised is missing;
    - "half": the length of half the file, and that half; "unsized": half the file, without a length;
    - "login": a page with status 200;
    - "stall": the last byte does not come; "slow": the header comes one byte at a time, without end.

    With "-once" after the name, only the first request is answered so.
    """

    def __init__(self):
        self.counts = Counter()
        self.over = threading.Event()

    def handler(self, folder):
        requests = self

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_GET(self):
                requests.counts[self.path] += 1
                kind, _, name = self.path[1:].partition("?")[0].partition("/")
                if not name:
                    super().do_GET()
                    return
                if kind.endswith("-once") and requests.counts[self.path] > 1:
                    kind = ""
                self.answer(kind.removesuffix("-once"), (folder / name).read_bytes())

            def answer(self, kind, data):
                half = data[: len(data) // 2]
                if kind.isdigit():
                    self.send_error(int(kind))
                elif kind == "slow":
                    self.wfile.write(b"HTTP/1.0 200 OK\r\nX-Wait: ")
                    with suppress(OSError):  # the client has gone
                        while not requests.over.wait(0.02):
                            self.wfile.write(b".")
                elif kind in ("cut", "stall"):
                    self.send(data[:-1], len(data))
                    if kind == "stall":
                        requests.over.wait(20)
                elif kind == "unsized":
                    self.send(half, None)
                else:
                    content = {"half": half, "login": LOGIN}.get(kind, data)
                    self.send(content, len(content))

            def send(self, data, length):
                self.send_response(200)
                if length is not None:
                    self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(data)

        return partial(Handler, directory=str(folder))
