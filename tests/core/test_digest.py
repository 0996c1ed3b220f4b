"""Names of records, which callers can neither make collide nor read a person from."""

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
def test_no_two_lists_of_parts_meet(one, other):
    assert (digest("test", *one) == digest("test", *other)) == (one == other)


def test_a_part_cannot_pass_for_another_and_its_frame():
    framed = b"ab" + (1).to_bytes(8, "big") + b"c"
    assert digest("test", b"ab", b"c") != digest("test", framed)
    assert digest("test", b"ab", b"c") != digest("test", b"a", b"bc")
    assert digest("test", b"a") != digest("testa")


def test_uses_differ():
    assert digest("one", b"a") != digest("other", b"a")


@given(some_parts, st.integers(1, 32))
def test_a_digest_can_be_told_before_all_parts_are_there(parts, size):
    rolling = Digest("test")
    for count, part in enumerate(parts):
        assert rolling.so_far(size) == digest("test", *parts[:count], size=size)
        rolling.add(part)
    assert rolling.so_far(size) == digest("test", *parts, size=size)
    assert len(rolling.so_far(size)) == size


@given(names, names)
def test_no_two_keys_have_one_name(one, other):
    assert (store_key(*one) == store_key(*other)) == (one == other)


@given(st.tuples(words, words), st.tuples(words, words))
def test_no_two_tokens_have_one_name(one, other):
    assert (token_key(*one) == token_key(*other)) == (one == other)


def test_names_stay_what_they_are():
    """Written down, for another release must find what this one wrote."""
    assert store_key("idem", "/a.B/C", b"scope", "key") == b"-OtjC8Dz-8RSaLGbl_rvH9cLAg2L80L9"
    assert token_key("idem", "token") == b"Uf7oP_hytn0N0IGCcDzfq3G-aFFyERyQ"


def test_names_tell_nothing():
    assert re.fullmatch(rb"[A-Za-z0-9_-]{32}", store_key("shop", "/a.B/C", b"tenant", "uid123"))
    assert re.fullmatch(rb"[A-Za-z0-9_-]{32}", token_key("shop", "uid123"))


@given(st.integers(0, 2**128 - 1), st.sampled_from([7, 8]))
def test_uuids(bits, version):
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


def test_a_derived_id_is_the_same_in_every_attempt_and_for_no_other_request():
    first = execution(1)
    assert first.derive("charge") == execution(2).derive("charge")
    others = [first.derive("mail"), execution(1, b"other").derive("charge")]
    assert first.derive("charge") not in [*others, execution(1, raw=b"other").derive("charge")]
    assert uuid.UUID(first.derive("charge")).version == 8
