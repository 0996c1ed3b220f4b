"""Names and numbers in docs/streams.md are right."""

import re

import grpc

import idem_grpc
import idem_grpc.aio
from idem_grpc import Reason
from idem_grpc._server import streams
from tests.server.client import RUN
from tests.server.processes import ROOT

PAGE = (ROOT / "docs/streams.md").read_text()
NAMED = set(re.findall(r"`([^`]+)`", PAGE))


def test_reasons_and_statuses():
    codes = {code.name for code in grpc.StatusCode}
    shouted = {name for name in NAMED if re.fullmatch(r"[A-Z_]{2,}", name)}
    assert shouted - codes - set(Reason.__members__) == {"EOF_HOLD", "NOT_SERVING"}


def test_names_of_the_library():
    for module in (idem_grpc, idem_grpc.aio):
        assert module.OnCancel.FINISH is not module.OnCancel.CANCEL
        assert {"max_response_bytes", "max_run"} <= set(module.Policy.__dataclass_fields__) & NAMED
        assert callable(module.ServerInterceptor.drain)
    assert {"OnCancel.FINISH", "OnCancel.CANCEL", "interceptor.drain(timeout)", RUN} <= NAMED
    assert {"idem_grpc.ServerInterceptor", "idem_grpc.aio.ServerInterceptor"} <= NAMED


def test_numbers():
    assert "idem_grpc._server.streams.EOF_HOLD" in NAMED
    assert f"`EOF_HOLD`, {sum(streams.EOF_HOLD) * 1000:.0f} ms" in PAGE


def test_every_row_of_the_table_has_every_kind():
    rows = [line for line in PAGE.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {6}
