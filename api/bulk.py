"""Forms with many files: all of them in one spool, because a temporary file for each would use up the process's."""

from __future__ import annotations

import errno
import io
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, cast

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException

from api import archives
from api.uploads import SPOOL_BYTES, Parser
from shared.errors import Invalid, StorageFull


class Slice(io.RawIOBase):
    """One file of a form: a stretch of the spool, which closes with the first of them, at the end of the form."""

    def __init__(self, spool: BinaryIO) -> None:
        self._spool = spool
        self._start = self._size = self._at = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to `offset` from the start, from here or from the end of this file."""
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` as far as this file goes."""
        self._spool.seek(self._start + self._at)
        data = self._spool.read(min(len(buffer), max(0, self._size - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def write(self, data: Any) -> int:
        """Append to the spool: the files of a form arrive one after the other. StorageFull."""
        try:
            end = self._spool.seek(0, io.SEEK_END)
            self._spool.write(data)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull() from error
            raise
        self._start = self._start if self._size else end
        self._size += len(data)
        return len(data)

    def close(self) -> None:
        """Close the spool."""
        self._spool.close()
        super().close()


class BulkParser(Parser):
    """A parser of forms with up to `max_files` files; TooLarge (`too_many_files`) beyond."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._spool: SpooledTemporaryFile[bytes] = SpooledTemporaryFile(SPOOL_BYTES)  # noqa: SIM115  # closed with the form
        self._files_to_close_on_error.append(self._spool)

    def on_headers_finished(self) -> None:
        """Let a file that begins be written to the spool."""
        try:
            super().on_headers_finished()
        except MultiPartException as error:
            raise (archives.too_many(int(self.max_files)) if self._current_files > self.max_files else error) from error
        if self._current_part.file is not None:
            self._files_to_close_on_error.pop().close()
            self._current_part.file.file = cast(BinaryIO, Slice(cast(BinaryIO, self._spool)))


def files_of(form: FormData) -> list[UploadFile]:
    """The uploads in the fields `file`, in order; Invalid when there is none or another field holds one."""
    found = [(name, value) for name, value in form.multi_items() if isinstance(value, UploadFile)]
    if not found or any(name != "file" for name, _ in found):
        raise Invalid("The form needs images, or one zip archive, as files in fields `file`.", code="missing_file")
    return [value for _, value in found]
