"""Every error Hilum raises on purpose, with its stable code and the HTTP status a door gives it.

HilumError
├── Invalid            422  a field, a header or a file is malformed
│   └── EmptyFile      422  the upload holds no byte
├── Unauthenticated    401  no key, or a key nobody made
├── Forbidden          403  the key lacks the scope
├── NotFound           404  no such thing, or another tenant's
├── Conflict           409  the same key in flight, or a state that does not allow it
├── TooLarge           413  more bytes than the operator allows
├── UnsupportedType    415  the content is no PNG, JPEG, TIFF, BMP or DICOM
├── Throttled          429  come back later
├── Unavailable        503  database, broker or worker is away, or a wait ran out
├── StorageFull        507  no room for the upload
├── Rejected           422  an answer: the image cannot honestly be judged (code, value, threshold)
│   └── Unreadable     422  no pixels could be had from the bytes
├── BundleError        500  a bundle is incomplete, altered or of another shape
├── LeaseLost          409  another worker owns the row by now: write nothing
└── Misconfigured      500  settings that cannot work together
"""

from __future__ import annotations


class HilumError(Exception):
    """An error with a stable `code`, an HTTP `status` and a sentence for people in `detail`."""

    code = "internal_error"
    status = 500
    title = "Internal error"

    def __init__(self, detail: str = "", *, code: str | None = None, **extra: object) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.code = code or type(self).code
        self.extra = extra


class Invalid(HilumError):
    """A field, a header or a file is malformed."""

    code, status, title = "invalid_request", 422, "The request is malformed"


class EmptyFile(Invalid):
    """The upload holds no byte."""

    code, title = "empty_file", "The file is empty"


class Unauthenticated(HilumError):
    """No key, or a key nobody made."""

    code, status, title = "unauthenticated", 401, "A valid API key is needed"


class Forbidden(HilumError):
    """The key lacks the scope that the route asks for."""

    code, status, title = "forbidden", 403, "This key may not do that"


class NotFound(HilumError):
    """No such thing, or it belongs to another tenant, which looks the same."""

    code, status, title = "not_found", 404, "Not found"


class Conflict(HilumError):
    """The state of the resource does not allow the request."""

    code, status, title = "conflict", 409, "The state of the resource does not allow this"


class TooLarge(HilumError):
    """More bytes than the operator allows."""

    code, status, title = "too_large", 413, "The upload is too large"


class UnsupportedType(HilumError):
    """The content is none of PNG, JPEG, TIFF, BMP and DICOM."""

    code, status, title = "unsupported_type", 415, "The content is no PNG, JPEG, TIFF, BMP or DICOM"


class Throttled(HilumError):
    """Too many requests; `retry_after_s` says when to come back."""

    code, status, title = "too_many_requests", 429, "Too many requests"


class Unavailable(HilumError):
    """A part that the request needs is away, or a wait ran out."""

    code, status, title = "unavailable", 503, "The service cannot answer now"


class StorageFull(HilumError):
    """There is no room for the upload."""

    code, status, title = "storage_full", 507, "The storage is full"


class Rejected(HilumError):
    """The image cannot honestly be judged: `code` says why, `value` was measured against `threshold`."""

    code, status, title = "rejected", 422, "The image cannot be judged"

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        value: float | None = None,
        threshold: float | None = None,
    ) -> None:
        super().__init__(detail, code=code)
        self.value = value
        self.threshold = threshold

    def __reduce__(self) -> tuple:
        return _rebuild_rejected, (type(self), self.code, self.detail, self.value, self.threshold)


class Unreadable(Rejected):
    """No pixels could be had from the bytes."""

    title = "The file cannot be read"


def _rebuild_rejected(
    kind: type[Rejected], code: str, detail: str, value: float | None, threshold: float | None
) -> Rejected:
    return kind(code, detail, value=value, threshold=threshold)


class BundleError(HilumError):
    """A bundle is incomplete, altered, or of another shape than its manifest says."""

    code, title = "bundle_error", "The model bundle cannot be used"


class LeaseLost(HilumError):
    """Another worker owns the row by now, or it has ended: nothing was written."""

    code, status, title = "lease_lost", 409, "The lease on this row is lost"


class Misconfigured(HilumError):
    """Settings that cannot work, or cannot work together."""

    code, title = "misconfigured", "The settings cannot work"
