"""A store belongs to the process that opened it: a server in a forked process refuses its calls."""

import subprocess
import sys

from tests.server.processes import ENVIRONMENT, ROOT

FORKED = """
import logging, os, sys
import idem_grpc, idem_grpc.aio
from tests.server.client import Kind
from tests.server.harness import FACES, open_store
from tests.server.ledger import order

face, url = sys.argv[1:]
logging.basicConfig(stream=sys.stdout)
store = open_store(face, url, "fork")
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
server = FACES[face](store)
request = order()
answer = server.client.call(Kind.UNARY, request, "key")
assert answer.reason is idem_grpc.Reason.MISCONFIGURED, answer
assert not server.ledger.all_runs
assert server.client.call(Kind.UNARY, request).ok
assert server.drain(30) == 0
sys.stdout.flush()
os._exit(0)
"""


def test_a_store_opened_before_a_fork_refuses_calls_with_the_reason(face, url):
    command = [sys.executable, "-c", FORKED, face, url]
    done = subprocess.run(
        command, timeout=60, cwd=ROOT, env=ENVIRONMENT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "before a fork" in done.stdout
    assert "open_store in each worker process" in done.stdout
