"""The errors that all stores raise."""

import pickle

import pytest

from idem_grpc.stores import StoreError, StoreUnavailable


def test_store_unavailable_means_no_answer_by_default():
    assert not StoreUnavailable("away").answered
    assert StoreUnavailable("out of memory", answered=True).answered
    assert not hasattr(StoreError("misused"), "answered")


@pytest.mark.parametrize("answered", [True, False])
def test_store_unavailable_can_be_pickled(answered):
    error = pickle.loads(pickle.dumps(StoreUnavailable("away", answered=answered)))
    assert str(error) == "away"
    assert error.answered is answered
