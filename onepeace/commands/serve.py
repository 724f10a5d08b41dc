"""`onepeace serve`: the page and the JSON API over an index, on this machine or, with a password, for others."""

import argparse
import contextlib
import ipaddress
import os
import secrets
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onepeace.commands import files, number
from onepeace.errors import UsageError, need

SAMPLES = Path("data", "samples")
PORT = 7860
PASSWORD = "ONEPEACE_PASSWORD"  # noqa: S105 (the name of a variable)
SHORTEST = 8
"""Characters of a password."""
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
EXAMPLES = f"""\
PATHS are one index (made by: onepeace index build), or files and folders, which are embedded at the start; by default
{SAMPLES}, if it is there.

  onepeace serve my.index
  onepeace serve my.index --port 8000 --host 0.0.0.0    # for others too; prints a password

The page is at /, the API is described at /docs. It serves the files of the index, and opens no path and no address
that a client names. On another address than that of this machine alone, a password is asked for; it and everything
else cross the network in plain HTTP, so put a server with TLS in front, or use an SSH tunnel. {PASSWORD}
is taken for --password, which other users of this machine can see.

exit code: 0 when it is stopped (Ctrl-C), 1 on failure, 2 for wrong usage"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("paths", nargs="*", metavar="PATHS", help="an index, or files and folders")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDR", help="address to listen at (127.0.0.1)")
    parser.add_argument("--port", type=_port, default=PORT, metavar="N", help=f"port ({PORT}); 0 takes a free one")
    parser.add_argument("--password", metavar="WORD", help="to be asked for; made up for other addresses if not given")
    parser.add_argument(
        "--max-upload", type=number.positive, default=20, metavar="MB", help="of one picture or sound (20)"
    )
    parser.add_argument("--model", metavar="NAME", help="of the index (default); tiny for files")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps; default: the best there is")
    parser.add_argument("--dtype", default="auto", metavar="NAME", help="float32, bfloat16, float16 or auto")


def run(args: argparse.Namespace) -> int:
    password = _password(args)
    paths = args.paths or ([str(SAMPLES)] if SAMPLES.is_dir() else [])
    if not paths:
        raise UsageError("name an index; make one with: onepeace index build FOLDER --index my.index")
    temporary = tempfile.TemporaryDirectory(prefix="onepeace-")
    with _ended_like_ctrl_c(), _listening(args.host, args.port) as listener, temporary as own:
        need("gradio", "web")  # now, and not after the files are embedded
        folder = _index(paths, Path(own, "index"), args)
        # Of Gradio: uploads lie in a folder of this user and this run, and nothing is reported to anybody.
        uploads = Path(own, "uploads")
        os.environ |= {"GRADIO_TEMP_DIR": str(uploads), "GRADIO_ANALYTICS_ENABLED": "False"}

        import uvicorn

        from onepeace.serve import page
        from onepeace.serve.api import create_app
        from onepeace.serve.limits import Limits
        from onepeace.serve.map import ServedMap
        from onepeace.serve.service import Service

        limits = Limits(upload=args.max_upload << 20)
        service = Service(folder, model=args.model, device=args.device, dtype=args.dtype, limits=limits)
        try:
            hosts = LOOPBACK | {args.host.lower()} if _is_loopback(args.host) else None
            options: dict[str, Any] = {"hosts": hosts, "password": password, "uploads": uploads}
            app = page.mount(create_app(service, **options, map_page=ServedMap(folder)), service)
            config = uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                ws="none",
                timeout_graceful_shutdown=1,
            )
            name = f"[{args.host}]" if ":" in args.host else args.host
            print(f"onepeace at http://{name}:{listener.getsockname()[1]} (API: /docs); stop with Ctrl-C", flush=True)
            if password is not None and args.password is None and not os.environ.get(PASSWORD):
                print(f"password (any user name): {password}", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                uvicorn.Server(config).run(sockets=[listener])
        finally:
            service.close()
    return 0


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 0 to 65535")
    return int(text)


def _password(args: argparse.Namespace) -> str | None:
    """The password to ask for: as given, or made up where one is needed; None on this machine alone."""
    given = args.password if args.password is not None else os.environ.get(PASSWORD) or None
    if given is not None and len(given) < SHORTEST:
        raise UsageError(f"the password has {len(given)} characters; give at least {SHORTEST}")
    return given if given is not None or _is_loopback(args.host) else secrets.token_urlsafe(16)


def _is_loopback(host: str) -> bool:
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, wherever it leads
        return False


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that waits for connections."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # now, so that two servers that start at once cannot both have the port
    except OSError as error:
        raise UsageError(f"cannot listen at {host}, port {port} ({error.strerror or error}); choose others") from error
    with listener:
        yield listener


@contextlib.contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """SIGTERM ends the block like Ctrl-C, so that own files are removed."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _index(paths: list[str], own: Path, args: argparse.Namespace) -> Path:
    """The folder of the index that is named, or of one made of the files."""
    from onepeace.index.index import is_index
    from onepeace.index.write import build

    indexes = [path for path in paths if is_index(path)]
    if len(indexes) == len(paths) == 1:
        return Path(indexes[0])
    if indexes:
        raise UsageError(f"{indexes[0]} is an index; serve one index, or plain files, at a time")
    report = build(own, paths, args.model, device=args.device, dtype=args.dtype)
    if report.problems:
        files.exit_code(report.problems, report.embedded + report.copied)
    return own
