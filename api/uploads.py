"""Multipart forms with one file: read strictly, streamed to a spool, closed when the request is done."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from shared.errors import Invalid

SPOOL_BYTES = 4 * 2**20
MAX_FIELDS = 32
MAX_FIELD_BYTES = 2**16

Fields = TypeVar("Fields", bound=BaseModel)


class Parser(MultiPartParser):
    """Starlette's parser, which stays in memory up to SPOOL_BYTES and remembers whether the form was complete."""

    spool_max_size = SPOOL_BYTES
    ended = False

    def on_end(self) -> None:
        """The closing boundary was read."""
        self.ended = True


@asynccontextmanager
async def reading_form(
    request: Request, parser_of: type[Parser] = Parser, *, max_files: int = 1
) -> AsyncIterator[FormData]:
    """The form of `request`, open within the block; Invalid when it is none, is cut short or holds too many files."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Invalid("The body must be multipart/form-data with the image in the field `file`.")
    parser = parser_of(
        request.headers,
        request.stream(),
        max_files=max_files,
        max_fields=MAX_FIELDS,
        max_part_size=MAX_FIELD_BYTES,
    )
    form = await _parse(parser)
    try:
        yield form
    finally:
        await form.close()


def file_of(form: FormData) -> UploadFile:
    """The upload in the field `file`; Invalid when there is none."""
    upload = form.get("file")
    if not isinstance(upload, UploadFile):
        raise Invalid("The form needs the image as a file in the field `file`.", code="missing_file")
    return upload


def fields_of(form: FormData, model: type[Fields]) -> Fields:
    """The fields beside the files, checked; Invalid for one given twice, RequestValidationError names wrong ones."""
    fields: dict[str, str | UploadFile] = {}
    for name, value in form.multi_items():
        if name in fields:
            raise Invalid(f"The field `{name}` is given twice.")
        if name != "file":
            fields[name] = value
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise RequestValidationError([{**e, "loc": ("body", *e["loc"])} for e in error.errors()]) from error


async def _parse(parser: Parser) -> FormData:
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Invalid(error.message, code="malformed_form") from error
    except ClientDisconnect as error:
        raise Invalid("The client left before the end of the form.", code="truncated_form") from error
    if not parser.ended:
        await form.close()
        raise Invalid("The form ends before its closing boundary.", code="truncated_form")
    return form
