"""The code blocks of the documentation, for tests that run them."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc

import idem_grpc

ROOT = Path(__file__).parents[2]


def blocks(page: str, language: str = "python") -> list[str]:
    """Return the code blocks in a language of a page, such as ``docs/client.md``, in their order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def block(page: str, part: str, **names: Any) -> dict[str, Any]:
    """Run the only block of a page of ``docs`` that contains ``part``, and return the names it leaves.

    The block can use grpc, timedelta, the names of idem_grpc and ``names``.
    """
    (code,) = [code for code in blocks(f"docs/{page}") if part in code]
    found = {**vars(idem_grpc), "grpc": grpc, "timedelta": timedelta, **names}
    exec(compile(code, page, "exec"), found)
    return found
