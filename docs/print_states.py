"""Print docs/states.md from the tables in the code:

python docs/print_states.py > docs/states.md
"""

import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "generated")]  # works in a checkout without an install

from idem_grpc._core.judge import ARRIVAL, BY_HAND, LATE, TRANSITIONS, Rule  # noqa: E402 -- found only once the path is set
from idem_grpc._core.outcome import Code  # noqa: E402 -- found only once the path is set
from idem_grpc._core.policy import Rules  # noqa: E402 -- found only once the path is set
from idem_grpc._core.record import State  # noqa: E402 -- found only once the path is set
from idem_grpc._core.steps import ENDINGS, Ending  # noqa: E402 -- found only once the path is set

PAGE = """\
# The states of a key

This page is printed from the tables in `idem_grpc/_core/judge.py` and `idem_grpc/_core/steps.py`
by `python docs/print_states.py > docs/states.md`. Change the tables, not the page.

A key starts at `[*]` if it was never seen, or if its record has expired or was deleted.

```mermaid
stateDiagram-v2
{diagram}
```

`idem-grpc resolve` can replace an outcome that it wrote itself. It never replaces the outcome of a run.

## When a call arrives

The first rule that matches the state found under the key applies.

{arrival}

## When a run ends, and its record has changed

An owner may be late: its lease expired, or the store lost its record. It then tries to keep its
outcome. The first rule that matches the state found under the key applies.

{late}

## How a handler's status is classified

This applies unless the handler calls `current().keep()` or `current().release()`. The table uses the default
of `Policy.replay_errors`.

{endings}
"""


def node(state: State) -> str:
    return "[*]" if state is State.ABSENT else state.name


def diagram() -> str:
    lines = [f"    {node(start)} --> {node(end)}" for start, ends in TRANSITIONS.items() for end in ends]
    lines += [
        f"    {node(start)} --> {node(end)}: corrected by a person"
        for start, ends in BY_HAND.items()
        for end in ends
    ]
    return "\n".join(lines)


def table(head: tuple[str, str], rows: Iterable[tuple[str, str]]) -> str:
    lines = [head, ("---", "---"), *rows]
    return "\n".join(f"| {left} | {right} |" for left, right in lines)


def rules(of: tuple[Rule, ...]) -> str:
    rows = ((", ".join(state.name for state in rule.states), rule.text) for rule in of)
    return table(("found", "rule"), rows)


def endings() -> str:
    replayed = Rules.of("/", []).replay_errors
    classes: dict[Ending, list[str]] = {ending: [] for ending in Ending}
    for code in Code:
        ending = Ending.DECIDED if code in replayed else ENDINGS.get(code, Ending.UNCLEAR)
        classes[ending].append(code.name)
    return table(("status", "class"), ((", ".join(codes), ending.value) for ending, codes in classes.items()))


def page() -> str:
    return PAGE.format(diagram=diagram(), arrival=rules(ARRIVAL), late=rules(LATE), endings=endings())


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]  # a file, as `>` makes it
    sys.stdout.write(page())
