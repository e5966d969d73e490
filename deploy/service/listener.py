"""The socket that a server listens on: bound before anything slow is loaded, and open once it can respond."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket

from deploy.service.routes import ServiceError

BACKLOG = 2048


def bind(host: str, port: int, port_flag: str) -> socket.socket:
    """Bind the address; no client can connect before `listen`. Raises ServiceError, which names the port's flag."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:  # the latter for names that IDNA cannot encode
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise ServiceError(f"--host {host}: no such address here: {reason}") from error
    try:
        if os.name == "posix":  # elsewhere it would let two programs have one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _listen_error(host, port, port_flag, error) from error
    return listener


def listen(listener: socket.socket, port_flag: str) -> None:
    """Let clients connect. Raises ServiceError."""
    try:
        listener.listen(BACKLOG)
    except OSError as error:  # another program took the address in the meantime
        host, port = listener.getsockname()[:2]
        raise _listen_error(host, port, port_flag, error) from error


def address_of(listener: socket.socket) -> str:
    """Return the address of the page, such as http://127.0.0.1:8080."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def is_local(listener: socket.socket) -> bool:
    """Return whether only programs of this machine can connect."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def _listen_error(host: str, port: int, port_flag: str, error: OSError) -> ServiceError:
    hint = f"; stop what listens there, or choose another {port_flag}" if error.errno == errno.EADDRINUSE else ""
    return ServiceError(f"cannot listen on {host}:{port}: {error.strerror}{hint}")
