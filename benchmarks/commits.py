"""Compare the CPU cost of a first call across commits: make bench-commits COMMITS="A B"

The servers of all commits run side by side and take turns. Each uses its commit's ``idem_grpc`` and the
current benchmark code. The table shows processor time over the bare server's.
"""

import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from benchmarks.load import Server, redis_server, rounds, spared_processor

ROWS = {"memory first": "memory", "redis first": "redis", "sqlite first": "sqlite"}
FACES = ("sync", "asyncio")
REPEATS, CALLS, WARM_UP = 7, 2000, 1000


def extract(commit: str, folder: Path) -> str:
    """Extract the library of a commit into a folder named after it. Returns the commit's subject."""
    into = folder / commit
    into.mkdir()
    archive = subprocess.run(
        ["git", "archive", commit, "idem_grpc", "generated"], capture_output=True, check=True
    ).stdout
    subprocess.run(["tar", "-x", "-C", into], input=archive, check=True)
    show = ["git", "show", "--no-patch", "--format=%s", commit]
    return subprocess.run(show, capture_output=True, check=True, text=True).stdout.strip()


def measure(face: str, row: str, commits: list[str], folder: Path, processor: int | None) -> dict[str, float]:
    """Return the median microseconds of processor time per call over the bare server's, by commit."""
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server())
        servers = {"": stack.enter_context(Server(face, "bare", "memory:", processor=processor))}
        for commit in commits:
            file = f"sqlite:///{folder}/{commit}-{face}.db"
            url = {"memory": "memory:", "redis": redis.url, "sqlite": file}[ROWS[row]]
            library = [folder / commit, folder / commit / "generated"]
            servers[commit] = stack.enter_context(
                Server(face, row, url, processor=processor, library=library)
            )
        for server in servers.values():
            server.load(WARM_UP)
        found = list(rounds(servers, REPEATS, CALLS))
        return {
            commit: median((spent[commit].cpu - spent[""].cpu) / CALLS * 1e6 for spent in found)
            for commit in commits
        }


def main() -> None:
    commits = sys.argv[1:]
    if not commits:
        sys.exit('give commits, as in: make bench-commits COMMITS="HEAD~1 HEAD"')
    with tempfile.TemporaryDirectory(prefix="idem-benchmark-") as name, spared_processor() as processor:
        folder = Path(name)
        subjects = {commit: extract(commit, folder) for commit in commits}
        columns = [(row, face) for row in ROWS for face in FACES]
        found = [measure(face, row, commits, folder, processor) for row, face in columns]
        print(f"| commit | {' | '.join(f'{row}, {face}' for row, face in columns)} |")
        print("| --- |" + " --- |" * len(columns))
        for commit, subject in subjects.items():
            print(f"| {commit} {subject} | {' | '.join(f'{each[commit]:.0f}' for each in found)} |")


if __name__ == "__main__":
    main()
