"""A Redis URL with several hosts is refused with that reason, with and without ports and passwords."""

import pytest

from idem_grpc.stores import open_async_store, open_store

SECRET = "s3cr3t"
SEVERAL = [
    *("h1,h2", "h1:1,h2:2/0", "h1:1,h2", "h1,h2:2", "h1:1,h2:2,h3:3/0?socket_timeout=1", "[::1]:1,[::2]:2/0"),
    *(f"user:{SECRET}@h1:1,h2:2/0", f":{SECRET},x@h1:1,h2:2"),
]
UNREADABLE = [f":12,{SECRET}/x@host", f":a,{SECRET}#x@host", f":a,{SECRET}?x@host", "host:port"]


@pytest.mark.parametrize("opening", [open_store, open_async_store])
@pytest.mark.parametrize("scheme", ["redis", "rediss"])
@pytest.mark.parametrize("rest", SEVERAL)
def test_several_hosts_are_refused(opening, scheme, rest):
    with pytest.raises(ValueError, match="names several hosts: give the URL of one server") as caught:
        opening(f"{scheme}://{rest}")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("opening", [open_store, open_async_store])
@pytest.mark.parametrize("rest", UNREADABLE)
def test_a_comma_in_a_password_is_not_a_second_host(opening, rest):
    with pytest.raises(ValueError, match="percent-encode") as caught:
        opening(f"redis://{rest}")
    assert SECRET not in str(caught.value)
    with open_store("redis://:a,b@host") as store:
        assert "a,b" not in repr(store)
