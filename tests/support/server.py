"""A web server on this machine."""

import threading
from collections import Counter
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer


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
    """The requests that a server got, and how it answers them: below /error-once/ and /cut-once/, the first request of
    a file fails; below /cut/ a file always ends too early; below /stall/ its last byte does not come."""

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
                is_first = requests.counts[self.path] == 1
                kind, _, name = self.path[1:].partition("?")[0].partition("/")
                if kind == "error-once" and is_first:
                    self.send_error(500)
                elif name:
                    is_cut = kind in ("cut", "stall") or (kind == "cut-once" and is_first)
                    self.send_file(folder / name, is_cut)
                    if kind == "stall":
                        requests.over.wait(20)
                else:
                    super().do_GET()

            def send_file(self, path, is_cut):
                data = path.read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[:-1] if is_cut else data)

        return partial(Handler, directory=str(folder))
