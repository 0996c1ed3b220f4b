"""What a Redis URL may say, and what of it may be shown: never a password."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import SplitResult, parse_qsl, urlsplit

# What a URL may say. Of redis-py's other options some break the store (decode_responses), some cannot
# be written in a URL (retry), and some hold for one of its two clients only (retry_on_error). A
# health_check_interval changes nothing: a connection is looked at before each use.
_SECONDS = frozenset({"socket_timeout", "socket_connect_timeout", "timeout"})
_OPTIONS = _SECONDS | {
    *("db", "username", "password", "client_name", "max_connections", "health_check_interval"),
    *("socket_keepalive", "socket_read_size", "ssl_keyfile", "ssl_certfile", "ssl_password"),
    *("ssl_cert_reqs", "ssl_ca_certs", "ssl_ca_path", "ssl_ca_data", "ssl_check_hostname"),
    *("ssl_min_version", "ssl_ciphers"),
}


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A URL that was looked through: what of it may be shown, and what redis-py is to assume beside it."""

    shown: str
    options: Mapping[str, Any]

    @classmethod
    def parse(cls, url: str) -> Self:
        try:
            parts = urlsplit(url)
            if _names_several(parts):
                raise _SeveralHosts
            host, port = parts.hostname or "localhost", parts.port or 6379
            query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
            if "@" in parts.query:  # then what is before it is no query, and its names are not for showing
                raise ValueError
        except _SeveralHosts:
            raise ValueError("the Redis URL names several hosts: give that of one server") from None
        except ValueError:  # not chained: it quotes the part it cannot read, and that may be the password
            raise ValueError(
                "the Redis URL cannot be read: write scheme://user:password@host:port/db?option=value,"
                " and percent-encode '/', '#', '?', '@' and ':' in a user name or password"
            ) from None
        _check_query(query)
        if parts.fragment:
            raise ValueError("the Redis URL holds a '#': percent-encode it as %23")
        if parts.scheme == "unix":
            if not parts.path.strip("/"):
                raise ValueError("the URL names no socket: write unix:///path/to/redis.sock")
            shown = f"unix://{parts.path}"
        else:
            if not re.fullmatch(r"(/\d*)?", parts.path):
                raise ValueError("the path of a Redis URL is the number of a database, as in redis://host/0")
            shown = f"{parts.scheme}://{host}:{port}{parts.path}"
        return cls(shown, _defaults(parts.scheme))


class _SeveralHosts(ValueError):
    pass


def _names_several(parts: SplitResult) -> bool:
    """Tell whether a comma is between hosts, and not in a password that is not percent-encoded."""
    is_cut = "@" in f"{parts.path}{parts.query}{parts.fragment}"
    return "," in parts.netloc.rpartition("@")[2] and not is_cut


def _check_query(query: Mapping[str, str]) -> None:
    if unknown := sorted(query.keys() - _OPTIONS):
        raise ValueError(
            f"the Redis URL has options that a store cannot use: {', '.join(unknown)};"
            f" it can use {', '.join(sorted(_OPTIONS))}"
        )
    if not re.fullmatch(r"\d+", query.get("db", "0")):
        raise ValueError("'db' in the Redis URL must be the number of a database")
    for name in sorted(query.keys() & (_SECONDS | {"max_connections"})):
        if not re.fullmatch(r"\d*\.?\d+", query[name]) or not float(query[name]):
            raise ValueError(f"{name} in the Redis URL must be a positive number")


def _defaults(scheme: str) -> dict[str, Any]:
    options = {
        "socket_timeout": 2.0,
        "socket_connect_timeout": 2.0,
        "timeout": 5.0,  # for a connection
        # Version 3 has messages that are no replies.
        "protocol": 2,
    }
    return options if scheme == "unix" else options | {"socket_keepalive": True}
