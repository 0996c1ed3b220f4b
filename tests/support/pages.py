"""Code blocks of the pages in docs/, to be run as they stand there."""

import re
from datetime import timedelta
from typing import Any

import grpc

import idem_grpc
from tests.server.processes import ROOT


def block(page: str, beginning: str, **names: Any) -> dict[str, Any]:
    """The names after the code block was run that contains this. It must be there once."""
    text = (ROOT / "docs" / page).read_text()
    (code,) = [
        code
        for code in re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        if beginning in code
    ]
    found = {**vars(idem_grpc), "grpc": grpc, "timedelta": timedelta, **names}
    exec(compile(code, page, "exec"), found)
    return found
