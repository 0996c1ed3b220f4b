"""The queue of what is due, against a list that is sorted each time."""

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from idem_grpc._core.due import DueQueue

ACTIONS = st.lists(
    st.tuples(st.just("push"), st.integers(0, 20))
    | st.tuples(st.just("cancel"), st.integers(0, 300))
    | st.tuples(st.just("pop"), st.integers(0, 20)),
    max_size=300,
)


@given(ACTIONS)
def test_items_come_in_order_and_without_those_that_are_stale(actions):
    cancelled: set[int] = set()
    queue = DueQueue[int](lambda _, item: item in cancelled)
    model: list[tuple[int, int]] = []
    for number, (action, value) in enumerate(actions):
        if action == "push":
            queue.push(value, number)
            model.append((value, number))
        elif action == "cancel" and any(item == value for _, item in model):
            cancelled.add(value)
            model = [(due, item) for due, item in model if item != value]
            queue.note_stale()
        elif action == "pop":
            due = sorted(entry for entry in model if entry[0] <= value)
            assert queue.pop(value) == (due[0][1] if due else None)
            model = [entry for entry in model if entry not in due[:1]]
        assert len(queue) >= len(model)
        assert queue.next_due <= min((due for due, _ in model), default=inf)


def test_it_does_not_grow_with_what_is_stale():
    stale: set[int] = set()
    queue = DueQueue[int](lambda _, item: item in stale)
    for number in range(10_000):
        queue.push(float(number), number)
        if number:
            stale.add(number)
            queue.note_stale()
    assert len(queue) < 200
    assert (queue.pop(inf), queue.pop(inf)) == (0, None)
    assert queue.next_due == inf


def test_items_due_at_the_same_time_keep_their_order():
    queue = DueQueue[str](lambda _, item: False)
    for item in "cab":
        queue.push(1.0, item)
    assert queue.pop(0.5) is None
    assert [queue.pop(1.0) for _ in range(4)] == ["c", "a", "b", None]
    queue.push(1.0, "d")
    queue.clear()
    assert not queue
