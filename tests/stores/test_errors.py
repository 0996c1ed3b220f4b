"""What the errors of stores say, whichever store raised them."""

import pickle

import pytest

from idem_grpc.stores import StoreError, StoreUnavailable


def test_an_unavailable_store_was_silent_unless_it_says_otherwise():
    assert not StoreUnavailable("away").answered
    assert StoreUnavailable("out of memory", answered=True).answered
    assert not hasattr(StoreError("misused"), "answered")


@pytest.mark.parametrize("answered", [True, False])
def test_it_says_so_in_another_process_too(answered):
    error = pickle.loads(pickle.dumps(StoreUnavailable("away", answered=answered)))
    assert str(error) == "away"
    assert error.answered is answered
