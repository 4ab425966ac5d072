"""Where events may be sent: the form of a receiver's URL, and which addresses belong to the public internet."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from pydantic import HttpUrl, TypeAdapter, ValidationError

from shared.errors import Invalid

LONGEST_URL = 2048
UNPRINTABLE = re.compile(r"[\x00-\x20\x7f\\]")
GLOBAL_UNICAST = ip_network("2000::/3")
SIX_TO_FOUR = ip_network("2002::/16")
NAT64 = ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are the address that is really meant

_HTTP_URL = TypeAdapter(HttpUrl)


def checked_url(text: str, *, private: bool) -> str:
    """The URL of a receiver in the normal form of the WHATWG's standard; Invalid when nothing may be sent there.

    `private` allows http:// and addresses that are not public. A name is looked up at each delivery, not here.
    """
    if UNPRINTABLE.search(text):
        raise Invalid("A URL holds no space, control character or backslash.", code="invalid_url")
    try:
        url = _HTTP_URL.validate_python(text)
    except ValidationError as error:
        raise Invalid(f"The URL cannot be used: {error.errors()[0]['msg']}.", code="invalid_url") from error
    if url.scheme != "https" and not private:
        raise Invalid("Events are sent to https:// only.", code="invalid_url")
    if url.username is not None or url.password is not None:
        raise Invalid("A URL with a user name or a password is not accepted: events are signed.", code="invalid_url")
    if url.fragment is not None or not url.port or not url.host or len(str(url)) > LONGEST_URL:
        raise Invalid("The URL has a fragment, no host, port 0, or is too long.", code="invalid_url")
    literal = _literal(url.host)
    if literal is not None and not private and not is_public(literal):
        raise Invalid("Events are sent to public addresses only.", code="address_not_allowed")
    return str(url)


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet, looking through IPv4 addresses within IPv6 ones.

    False for private, loopback, link-local, shared (RFC 6598), multicast, reserved and documentation addresses.
    """
    found = _meant(ip_address(address.partition("%")[0]))
    if isinstance(found, IPv6Address) and (found not in GLOBAL_UNICAST or found in SIX_TO_FOUR):
        return False
    return found.is_global and not found.is_multicast


def _meant(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 one stands for, where a gateway or the kernel would go there."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in NAT64:
            return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def _literal(host: str) -> str | None:
    """The host, if it is an address and no name."""
    try:
        return str(ip_address(host.strip("[]")))
    except ValueError:
        return None
