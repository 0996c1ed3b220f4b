"""replay_at_once returns what the flow would have replied."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from idem_grpc._core.fingerprint import Fingerprint
from idem_grpc._core.flow import flow, replay_at_once
from idem_grpc._core.outcome import Code, Outcome
from idem_grpc._core.record import Binding, Record, State
from idem_grpc._core.steps import Reply
from idem_grpc._core.swap import Held
from tests.core.calls import ME, TOKEN

digests = st.sampled_from([b"one", b"other"])
fingerprints = st.builds(Fingerprint, digests, digests | st.just(b""))
bindings = st.none() | st.builds(Binding, digests, digests)
outcomes = st.builds(
    Outcome,
    st.sampled_from([Code.OK, Code.NOT_FOUND]),
    st.sampled_from(["", "details"]),
    messages=st.sampled_from([(), (b"", b"two")]),
) | st.just(Outcome(messages_dropped=True))
records = st.builds(
    Record,
    state=st.just(State.DONE),
    attempt=st.integers(1, 3),
    owner=st.just(b"owner"),
    fingerprint=st.none() | fingerprints,
    outcome=outcomes,
    binding=bindings,
)


@given(records, fingerprints, bindings)
def test_replay_at_once_is_the_reply_of_the_flow_or_none(record, shown, binding):
    call = replace(ME if binding is None else TOKEN, fingerprint=shown, binding=binding)
    at_once = replay_at_once(record, binding, shown.raw)
    steps = flow(call)
    next(steps)
    by_flow = steps.send(Held(record.to_bytes(), 10.0))
    assert isinstance(by_flow, Reply)
    if at_once is not None:
        assert at_once == by_flow
    elif record.fingerprint is not None and record.fingerprint.raw == shown.raw:
        assert not by_flow.replayed, "a replay that could have been found at once"
