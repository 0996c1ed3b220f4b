"""Names of records, which callers cannot make collide and which show no personal data."""

import re
import uuid

from hypothesis import given
from hypothesis import strategies as st

from idem_grpc._core.clock import elapsed
from idem_grpc._core.digest import Digest, as_uuid, digest, store_key, token_key
from idem_grpc._core.execution import Lease, Run
from idem_grpc._core.fingerprint import Fingerprint
from idem_grpc._core.policy import Rules
from idem_grpc._core.record import Record, State
from idem_grpc._core.swap import Swap

some_parts = st.lists(st.binary(max_size=3), max_size=3)
words = st.text(max_size=3)
names = st.tuples(words, words, st.binary(max_size=3), words)


@given(some_parts, some_parts)
def test_different_lists_of_parts_have_different_digests(one, other):
    assert (digest("test", *one) == digest("test", *other)) == (one == other)


def test_a_part_that_looks_like_two_framed_parts_has_another_digest():
    framed = b"ab" + (1).to_bytes(8, "big") + b"c"
    assert digest("test", b"ab", b"c") != digest("test", framed)
    assert digest("test", b"ab", b"c") != digest("test", b"a", b"bc")
    assert digest("test", b"a") != digest("testa")


def test_different_uses_have_different_digests():
    assert digest("one", b"a") != digest("other", b"a")


@given(some_parts, st.integers(1, 32))
def test_a_rolling_digest_equals_the_digest_of_the_parts_so_far(parts, size):
    rolling = Digest("test")
    for count, part in enumerate(parts):
        assert rolling.so_far(size) == digest("test", *parts[:count], size=size)
        rolling.add(part)
    assert rolling.so_far(size) == digest("test", *parts, size=size)
    assert len(rolling.so_far(size)) == size


@given(names, names)
def test_different_keys_have_different_names(one, other):
    assert (store_key(*one) == store_key(*other)) == (one == other)


@given(st.tuples(words, words), st.tuples(words, words))
def test_different_tokens_have_different_names(one, other):
    assert (token_key(*one) == token_key(*other)) == (one == other)


def test_names_are_the_same_in_every_release():
    """The names are literals here: another release must find what this one wrote."""
    assert store_key("idem", "/a.B/C", b"scope", "key") == b"-OtjC8Dz-8RSaLGbl_rvH9cLAg2L80L9"
    assert token_key("idem", "token") == b"Uf7oP_hytn0N0IGCcDzfq3G-aFFyERyQ"


def test_names_show_nothing_of_the_key():
    assert re.fullmatch(rb"[A-Za-z0-9_-]{32}", store_key("shop", "/a.B/C", b"tenant", "uid123"))
    assert re.fullmatch(rb"[A-Za-z0-9_-]{32}", token_key("shop", "uid123"))


@given(st.integers(0, 2**128 - 1), st.sampled_from([7, 8]))
def test_uuids_have_the_version_and_all_other_bits(bits, version):
    made = uuid.UUID(as_uuid(bits, version))
    assert (made.version, made.variant) == (version, uuid.RFC_4122)
    untouched = ~(0xF << 76 | 0b11 << 62)
    assert made.int & untouched == bits & untouched


def execution(attempt: int, key: bytes = b"name", raw: bytes = b"raw") -> Run:
    run = Run(Rules.of("/a.B/C", []))
    run.store_key = key
    lease = Lease(Swap(key, None, b"claim", 60.0), 60.0, 60.0, elapsed())
    run.starts(Record(state=State.RUNNING, attempt=attempt, fingerprint=Fingerprint(raw)), lease)
    return run


def test_derived_ids_are_the_same_in_every_attempt_and_differ_between_requests():
    first = execution(1)
    assert first.derive("charge") == execution(2).derive("charge")
    others = [first.derive("mail"), execution(1, b"other").derive("charge")]
    assert first.derive("charge") not in [*others, execution(1, raw=b"other").derive("charge")]
    assert uuid.UUID(first.derive("charge")).version == 8
