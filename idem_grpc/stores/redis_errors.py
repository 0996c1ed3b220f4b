"""What an error of redis-py means: a mistake that somebody has to correct, or an outage that passes."""

import re
from collections.abc import Collection

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    AuthorizationError,
    BusyLoadingError,
    NoPermissionError,
    ResponseError,
)

from idem_grpc.stores.protocol import StoreError, StoreUnavailable
from idem_grpc.stores.redis_url import RedisUrl

CLUSTER = (
    "the server is a node of a Redis cluster, and other nodes hold the other keys: clusters are not supported"
    " yet, so give the URL of a server that is in none"
)
_CREDENTIALS = (AuthenticationError, AuthenticationWrongNumberOfArgsError, AuthorizationError)
_FORBIDDEN = re.compile(r"ACL failure|user executing the script can't run|^NOPERM")
_NO_COMMAND = re.compile(r"unknown (?:redis )?(?:sub)?command\b(?: ['`](\w{1,20})['`])?", re.IGNORECASE)
_NO_DATABASE = re.compile(r"DB index|SELECT is not allowed|Invalid Database", re.IGNORECASE)
_NO_SCRIPTS = re.compile(r"compiling script|scripting engine|script shebang")


def failure(url: RedisUrl, error: Exception, key: bytes | None = None) -> StoreError:
    """The error to raise instead of redis-py's ``error``. ``key`` is the name that the swap was for.

    A StoreError is a mistake in the URL, on the server or in the database: sending the call again does not
    help. Everything else is a StoreUnavailable, errors that are not known here too. Raise it without a
    cause: the server's words may repeat what it was sent, such as the password or a record.
    """
    if mistake := _mistake(error, key):
        return StoreError(f"{url.shown}: {mistake}")
    answered = isinstance(error, (ResponseError, BusyLoadingError)) or "max number of clients" in str(error)
    return StoreUnavailable(f"{url.shown}: {type(error).__name__}: {error}", answered=answered)


def is_forbidden(error: Exception) -> bool:
    """Tell whether the server has a command for other users only, or for nobody."""
    text = str(error)
    is_known = isinstance(error, NoPermissionError) or _FORBIDDEN.search(text) or _NO_COMMAND.search(text)
    return bool(isinstance(error, ResponseError) and is_known)


def is_of_another_type(reply: object) -> bool:
    """Tell whether a script's reply is that the key holds a list or the like."""
    return isinstance(reply, ResponseError) and str(reply).startswith("WRONGTYPE")


def left_out(keys: Collection[bytes]) -> str:
    """What to say of keys of another type that a scan met."""
    example = min(keys).decode(errors="backslashreplace")
    others = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return (
        f"left out {example}{others}: the Redis type is not a record's, so something else writes in this"
        " namespace, and calls whose key has that name are refused"
    )


def _mistake(error: Exception, key: bytes | None) -> str | None:
    """What is set up wrongly, and what to do about it; None for what passes."""
    text = str(error)
    if isinstance(error, _CREDENTIALS):
        return _credentials(text)
    if isinstance(error, AskError):  # MOVED is one too
        return CLUSTER
    if not isinstance(error, ResponseError):
        return None
    if is_of_another_type(error):
        name = "a key of the store" if key is None else f"the key {key.decode(errors='backslashreplace')}"
        return (
            f"{name} holds a Redis type that is not a record's, so something else writes in this namespace:"
            " delete or rename that key, and give the store a namespace or a database of its own"
        )
    if isinstance(error, NoPermissionError) or _FORBIDDEN.search(text):
        return (
            f"the user of the URL lacks a permission ({text}): a store needs the commands EVALSHA, EVAL, GET,"
            " PTTL, SET, PEXPIRE and DEL on the keys of its namespace"
        )
    if found := _NO_COMMAND.search(text):
        return (
            f"the server does not know the command {found[1] or 'that a script needs'}, or its configuration"
            " disables it: a store needs a Redis or Valkey server (not a Sentinel) with EVALSHA and EVAL"
        )
    if _NO_DATABASE.search(text):
        return f"there is no database with the number in the URL ({text}): give one that the server has"
    if _NO_SCRIPTS.search(text):
        return f"the server cannot run the store's script ({text}): a store needs a Redis or Valkey with Lua"
    return None


def _credentials(text: str) -> str:
    if "Authentication required" in text:
        return "the server asks for a password, and the URL has none: write it as redis://user:password@host"
    if re.search(r"without any password|no password is set", text):
        return "the URL has a password, and the server has none: remove it, or set one on the server"
    return "the server refuses the user name or the password of the URL, or that user is disabled: correct it"
