"""What a client would rather have, by its `Accept` header (RFC 9110, section 12.5.1)."""

from __future__ import annotations


def quality(accept: str, media_type: str) -> float:
    """How much a client wants `media_type`, 0..1; the most specific range that fits decides, no header wants all."""
    ranges = dict(map(_range, accept.lower().split(","))) if accept.strip() else {"*/*": 1.0}
    kind = media_type.split("/")[0]
    return next((ranges[one] for one in (media_type, f"{kind}/*", "*/*") if one in ranges), 0.0)


def _range(part: str) -> tuple[str, float]:
    name, *parameters = (piece.strip() for piece in part.split(";"))
    weights = [parameter[2:] for parameter in parameters if parameter.startswith("q=")]
    try:
        return name, float(weights[0]) if weights else 1.0
    except ValueError:
        return name, 0.0
