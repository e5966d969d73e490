"""Which web pages may send requests: the names that the service answers to, and the origins of pages.

A page of any website can make its visitor's browser send requests to this machine. It cannot choose their Host, Origin
and Sec-Fetch-Site, which the browser sets.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

ANY = "*"
OWN_ORIGIN = {b"same-origin", b"none"}  # of Sec-Fetch-Site; none: typed by the user
READING = {"GET", "HEAD", "OPTIONS"}
OPEN_TO_ANY_HOST = {
    "/healthz",
    "/readyz",
    "/v2/health/live",
    "/v2/health/ready",
}  # load balancers send what they like, and these reveal nothing
LONGEST_NAME = 255


@dataclass(frozen=True)
class AllowedOrigins:
    """The names of the service beside those of loopback, and the origins whose pages may use it; ANY allows all."""

    hosts: Collection[str] = ()
    origins: Collection[str] = ()

    def refusal(self, method: str, path: str, headers: Mapping[bytes, bytes], own_address: str) -> tuple[int, str]:
        """Return why a request is refused, as a status and a sentence, or (0, "").

        `own_address` is the one that the client connected to. Where that is in a network, its digits are as good as any
        others: a website's name can be made to point to this machine, but not its numbers.
        """
        host = headers.get(b"host", b"").decode("latin-1")
        name = _name(host)
        if path not in OPEN_TO_ANY_HOST and name and not self._is_own(name, own_address):
            return 421, f'this service is not called "{name[:LONGEST_NAME]}"; --allowed_hosts adds a name'
        if method in READING or self._may_send(headers, host):
            return 0, ""
        return 403, "a page of another origin may not send this; --cors_origins allows one"

    def _is_own(self, name: str, own_address: str) -> bool:
        if is_loopback(name) or ANY in self.hosts or name in self.hosts:
            return True
        return is_address(name) and not is_loopback(own_address)

    def _may_send(self, headers: Mapping[bytes, bytes], host: str) -> bool:
        """Return whether no browser sent it, or a browser did for a page of the service's own or of a named origin."""
        origin = headers.get(b"origin", b"").decode("latin-1")
        site = headers.get(b"sec-fetch-site")
        if ANY in self.origins or (origin and origin in self.origins):
            return True
        if site is not None:
            return site in OWN_ORIGIN
        own = origin.partition("://")[2]  # "" of "null", which is nobody's
        return not origin or (bool(own) and (own.lower() == host.lower() or _name(own) in self.hosts))


def is_loopback(name: str) -> bool:
    """Return whether a host's name is one of this machine, for any network."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    return is_address(name) and ipaddress.ip_address(name).is_loopback


def is_address(name: str) -> bool:
    """Return whether a host's name is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_origin(text: str) -> bool:
    """Return whether a text is an origin as browsers write it, or ANY."""
    return text == ANY or bool(re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+", text))


def _name(host: str) -> str:
    """Return the name of a Host header, without its port, brackets and final dot."""
    match = re.fullmatch(r"\[([^\]]*)\](?::\d*)?|([^:]*)(?::\d*)?", host.strip())
    name = host if match is None else match[1] or match[2] or ""
    return name.lower().rstrip(".")
