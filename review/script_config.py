"""The configs of a script's pages, checked: who may come, where it listens, and what is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.formatting import did_you_mean, is_utf8
from deploy.service.origins import is_loopback
from review.errors import ReviewError
from review.recording import COLORS
from review.serving import Place
from review.users import LONGEST, Users

DEFAULTS: dict[str, Any] = {"host": "127.0.0.1", "port": 8090, "allowed_hosts": [], "color": COLORS[0]}
USERS = "white_users"
PORT_KEY = "port in the config"


@dataclass(frozen=True)
class ScriptConfig:
    """What every page of a script has, and its own keys in `values`."""

    name: str
    place: Place
    users: Users
    color: str
    folder: Path
    values: dict[str, Any] = field(default_factory=dict)


def checked_config(name: Any, config: Mapping[str, Any] | None, own: Mapping[str, Any]) -> ScriptConfig:
    """Return a page's config; `own` are its own keys with their defaults, whose types theirs must be.

    Raises ReviewError.
    """
    if not isinstance(name, str) or not name or name != Path(name).name or name in (".", "..") or not is_utf8(name):
        raise ReviewError(f"the name must be text that a folder may have, got {name!r}")
    if not isinstance(config or {}, Mapping):
        raise ReviewError(f"the config must be a dict, got {type(config).__name__}")
    known = {**DEFAULTS, USERS: {}, "folder": f"dump/{name}", **own}
    given = dict(config or {})
    for key in given:
        if key not in known:
            raise ReviewError(f'config: unknown key "{key}"{did_you_mean(str(key), known)}')
    values = {key: default if given.get(key) is None else given[key] for key, default in known.items()}
    for key, value in values.items():
        _check_type(key, value, known[key])
    if values["color"] not in COLORS:
        raise ReviewError(f"config: color must be {' or '.join(COLORS)}, got {values['color']!r}")
    if not 0 <= values["port"] <= 65535:
        raise ReviewError(f"config: port must be 0 to 65535, got {values['port']}")
    users = Users(_passwords(values[USERS]))
    host = values["host"]
    if not users and not is_loopback(host.lower()):
        raise ReviewError(f'config: host {host} lets others connect; name who may: "white_users": {{"ann": ...}}')
    place = Place(host, values["port"], tuple(map(str, values["allowed_hosts"])), PORT_KEY)
    return ScriptConfig(name, place, users, values["color"], Path(values["folder"]), {key: values[key] for key in own})


def _check_type(key: str, value: Any, default: Any) -> None:
    wanted = (int, float) if type(default) is float else type(default)
    is_right = isinstance(value, wanted) and (isinstance(default, bool) or not isinstance(value, bool))
    if not is_right and not (isinstance(default, list) and isinstance(value, tuple)):
        name = "a number" if type(default) is float else type(default).__name__
        got = type(value).__name__ if key == USERS else repr(value)  # which may hold a password
        raise ReviewError(f"config: {key} must be {name}, got {got}")


def _passwords(users: Mapping[str, Any]) -> dict[str, str]:
    """Return the passwords of {"ann": {"password": "pw"}}. Raises ReviewError, which holds no password."""
    found = {}
    for name, entry in users.items():
        password = entry.get("password") if isinstance(entry, Mapping) else entry
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST or not name.isprintable():
            raise ReviewError("config: a name of white_users is no text")
        if not isinstance(password, str) or not 0 < len(password) <= LONGEST:
            raise ReviewError(f'config: user "{name}" of white_users has no password; write {{"password": "..."}}')
        found[name] = password
    return found
