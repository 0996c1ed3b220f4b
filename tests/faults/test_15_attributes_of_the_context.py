"""Attributes of the context are shared between a handler and the interceptors outside."""

from typing import Any

import grpc
import pytest

from idem_grpc import OnCancel, Policy
from idem_grpc._core.record import State
from tests.faults.compared import ask
from tests.faults.handlers import behavior_of, doing, like
from tests.server.kinds import ALL, kinds
from tests.server.ledger import Gate
from tests.streams.scripts import Cross, Read
from tests.streams.servers import Conversation
from tests.support.wait import until

kind = kinds(*ALL)

OURS = [
    "caller",
    "incoming",
    "context",
    "rules",
    "aborted",
    "details_",
    "reader",
    "writer",
    "initial_metadata",
]
"""Names that a Recording has, or has had, and that anybody may use on a context."""


class Signed:
    """A context with the identity from authentication, around the real one."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self.user = "alice"
        self.seen: dict[str, Any] = {}
        for name in OURS:
            setattr(self, name, f"the {name} of authentication")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    @property
    def tenant(self) -> str:
        return f"tenant of {self._context.peer()}"

    def may(self, what: str) -> str:
        return f"{self.user} may {what} from {self._context.peer()}"


class SyncSigns(grpc.ServerInterceptor):
    def __init__(self, wrap: Any = Signed) -> None:
        self.contexts: list[Any] = []
        self._wrap = wrap

    def intercept_service(self, continuation, details):
        handler = continuation(details)

        def behavior(request, context):
            self.contexts.append(self._wrap(context))
            return behavior_of(handler)(request, self.contexts[-1])

        return like(handler, behavior)


class AsyncSigns(grpc.aio.ServerInterceptor):
    def __init__(self, wrap: Any = Signed) -> None:
        self.contexts: list[Any] = []
        self.is_over = False
        self._wrap = wrap

    async def intercept_service(self, continuation, details):
        handler = await continuation(details)

        async def response(request, context):
            self.contexts.append(self._wrap(context))
            try:
                return await behavior_of(handler)(request, self.contexts[-1])
            finally:
                self.is_over = True

        async def responses(request, context):
            self.contexts.append(self._wrap(context))
            try:
                async for message in behavior_of(handler)(request, self.contexts[-1]):
                    yield message
            finally:
                self.is_over = True

        return like(handler, responses if handler.response_streaming else response)


@pytest.fixture
def signs(style) -> Any:
    return SyncSigns() if style == "sync" else AsyncSigns()


def test_the_handler_sees_what_authentication_put_on_the_context(start_scripted, signs, kind, key):
    seen: list[Any] = []

    def look(context):
        seen.extend([context.user, context.tenant, context.may("pay"), getattr(context, "nothing", None)])
        seen.extend(getattr(context, name) for name in OURS)

    server = start_scripted(scripts=doing(kind, look), before=[signs])
    assert ask(server.client, kind, key).ok
    tenant, may = seen[1:3]
    assert seen[0] == "alice"
    assert tenant.startswith("tenant of ipv4:127.0.0.1")
    assert may.startswith("alice may pay from ipv4:127.0.0.1")
    assert seen[3:] == [None, *(f"the {name} of authentication" for name in OURS)]


def test_interceptors_outside_see_what_the_handler_puts_on_the_context(start_scripted, signs, kind, key):
    def put(context):
        context.order = 5
        context.user = "bob"
        for name in OURS:
            setattr(context, name, f"the {name} of the handler")
        context.removed = 1
        del context.removed
        assert not hasattr(context, "removed")
        assert (context.order, context.user) == (5, "bob")

    server = start_scripted(scripts=doing(kind, put), before=[signs])
    assert ask(server.client, kind, key).ok
    (context,) = signs.contexts
    assert (context.order, context.user, hasattr(context, "removed")) == (5, "bob", False)
    assert [getattr(context, name) for name in OURS] == [f"the {name} of the handler" for name in OURS]


def test_attributes_work_with_no_wrapper_outside(start_scripted, kind, key):
    """They work between an interceptor inside and its handler too."""

    def put(context):
        context.order = 5
        assert context.order == 5
        del context.order
        assert not hasattr(context, "order")

    assert ask(start_scripted(scripts=doing(kind, put)).client, kind, key).ok


@pytest.mark.parametrize("style", ["sync"], indirect=True)
def test_attributes_set_on_grpcs_own_context_are_there(start_scripted, kind, key):
    def marked(context):
        context.user = "alice"
        return context

    seen: list[str] = []
    server = start_scripted(
        scripts=doing(kind, lambda context: seen.append(context.user)), before=[SyncSigns(marked)]
    )
    assert ask(server.client, kind, key).ok
    assert seen == ["alice"]


@pytest.mark.parametrize("style", ["sync"], indirect=True)
def test_the_state_of_the_call_is_that_of_grpc_with_the_handlers_changes(start_scripted, kind, key):
    seen: list[Any] = []

    def look(context):
        state = context._state
        seen.append((state.code, state.details, state.aborted, state.client, state.trailing_metadata))
        context.set_code(grpc.StatusCode.NOT_FOUND)
        context.set_details("no")
        context.set_trailing_metadata((("seal", "1"),))
        seen.append((state.code, state.details, state.aborted, state.client, state.trailing_metadata))

    server = start_scripted(scripts=doing(kind, look))
    plain = start_scripted(scripts=doing(kind, look), protected=False)
    for each in (server, plain):
        assert ask(each.client, kind, key).code is grpc.StatusCode.NOT_FOUND
    assert seen[:2] == seen[2:]


def test_an_interceptor_inside_may_replace_a_method(start_scripted, style, kind, key):
    noted: list[Any] = []

    def noting(context):
        set_code = context.set_code

        def note(code):
            noted.append(code)
            set_code(code)

        context.set_code = note
        return context

    inside: Any = SyncSigns(noting) if style == "sync" else AsyncSigns(noting)
    scripts = doing(kind, lambda context: context.set_code(grpc.StatusCode.NOT_FOUND))
    if style in ("sync", "aio"):  # as the interceptors here take handlers to be
        server = start_scripted(scripts=scripts, after=[inside])
        answers = [ask(server.client, kind, key) for _ in range(2)]
        assert noted == [grpc.StatusCode.NOT_FOUND]
        assert answers[1].essence == answers[0].essence
        assert answers[1].replayed


@pytest.mark.parametrize("on_cancel", OnCancel)
def test_a_handler_whose_caller_left_can_still_read_attributes(
    start_scripted, signs, style, kind, key, on_cancel
):
    """The context of grpc.aio must not be used any more: that would end the process."""
    gate, seen = Gate(), list[Any]()

    def look(context):
        seen.append(context.user)
        context.order = 5
        seen.append(context.order)
        for ask_of in (lambda: context.tenant, lambda: context.may("pay")):
            try:
                seen.append(ask_of())
            except AttributeError as error:
                seen.append(str(error))

    def script(context):
        request = yield Read()
        while kind.has_request_stream and request is not None:
            request = yield Read()
        try:
            yield Cross(gate)
        finally:
            look(context)
        return b"answer"

    server = start_scripted(scripts={kind: script}, before=[signs], default=Policy(on_cancel=on_cancel))
    call = Conversation(server.client, kind, key).send(b"request").end()
    gate.await_arrival()
    call.cancel()
    until(lambda: signs.is_over if style != "sync" else not signs.contexts[0].is_active())
    gate.open()
    until(lambda: server.drain(0) == 0)
    assert seen[:2] == ["alice", 5]
    assert len(seen) == 4
    assert server.record(key, kind).state in (State.DONE, State.OPEN)
