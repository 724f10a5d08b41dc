"""Responses of the server: JSON, one-line errors, and files with the byte ranges that players ask for."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from onepeace.errors import UserError, one_line
from onepeace.index.cache import is_lost
from onepeace.index.database import Damaged
from onepeace.serve import media
from onepeace.serve.requests import Refused, first_error

DESCRIPTORS = Path("/dev/fd")
"""Folder in which every open file has its descriptor as a name; Windows has none."""
FILE_HEADERS = {
    # A file opened as a page of its own has no permissions.
    "content-security-policy": "sandbox; default-src 'none'; img-src 'self'; media-src 'self'; style-src 'none'",
    "cache-control": "private, max-age=3600",
}


class AsciiJSON(JSONResponse):
    """JSON response in ASCII: file names may contain invalid bytes, which Python keeps as surrogates."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


class VectorsJSON(AsciiJSON):
    """JSON response with many numbers, which pydantic writes in an eighth of the time."""

    def render(self, content: Any) -> bytes:
        try:
            return to_json(content)
        except ValueError:  # half of a surrogate pair in a message
            return super().render(content)


class OpenFileResponse(FileResponse):
    """Response with a file that is open already, so that what was checked is what is sent.

    Starlette opens the file again by its descriptor; its path may mean another file by then.
    """

    def __init__(self, file: BinaryIO, media_type: str, headers: Mapping[str, str]) -> None:
        descriptor = file.fileno()
        super().__init__(
            DESCRIPTORS / str(descriptor),
            headers=headers,
            media_type=media_type,
            stat_result=os.fstat(descriptor),
        )
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:  # also if the client goes away before
            self._file.close()


def file_response(body: media.Body) -> Response:
    """Response with the content of a file, whole or a byte range of it, by the headers of the request."""
    headers = dict(FILE_HEADERS)
    if body.type == media.OTHER:
        headers["content-disposition"] = "attachment"
    content = body.content
    if DESCRIPTORS.is_dir():
        if isinstance(content, bytes):
            content = _temporary_file(content)
        return OpenFileResponse(content, body.type, headers)
    if isinstance(content, bytes):
        return Response(content, headers=headers, media_type=body.type)
    with content:
        return FileResponse(content.name, headers=headers, media_type=body.type)


def error_response(status: int, message: str) -> Response:
    """Response with an error in one line; the client of a busy server may try again after a second."""
    return AsciiJSON({"error": {"message": message}}, status, {"retry-after": "1"} if status == 503 else None)


def answer_errors(app: FastAPI) -> None:
    """Install handlers that respond to every error with one line."""

    @app.exception_handler(UserError)
    async def user_error(_: object, error: UserError) -> Response:
        if isinstance(error, Refused):
            return error_response(error.status, one_line(error))
        if is_lost(error):
            return error_response(500, "the index was damaged; start the server again, which makes it anew")
        if isinstance(error, Damaged):  # whatever the request is
            return error_response(500, one_line(error))
        return error_response(422, one_line(error))

    @app.exception_handler(RequestValidationError)
    async def malformed(_: object, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["loc"][0] == "path":
            return error_response(404, f"{one_line(first['input'])}: not the number of a file")
        return error_response(422, first_error(error.errors(), 1))  # of the query

    @app.exception_handler(UnicodeEncodeError)
    async def invalid_unicode(_: object, error: UnicodeEncodeError) -> Response:
        return error_response(422, "a text contains a lone surrogate; send valid Unicode")

    @app.exception_handler(HTTPException)
    async def no_route(_: object, error: HTTPException) -> Response:
        return error_response(error.status_code, one_line(error.detail))


def _temporary_file(content: bytes) -> BinaryIO:
    """A file without a name that holds a sample of a shard or a converted sound."""
    file = tempfile.TemporaryFile()
    file.write(content)
    file.seek(0)  # on some systems a file that is opened by its descriptor goes on where that one is
    return file
