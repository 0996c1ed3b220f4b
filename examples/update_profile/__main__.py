"""Updates that arrive twice, at once and late: ``python -m examples.update_profile``.

Checks the answers and the events. Exits with status 0 if everything held.
"""

import argparse
import signal
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
from examples_pb.update_profile.v1 import profiles_pb2 as pb
from examples_pb.update_profile.v1 import profiles_pb2_grpc as pb_grpc
from google.protobuf.field_mask_pb2 import FieldMask

from examples.processes import Server
from examples.scenes import play_all
from examples.update_profile.profiles import Profiles

CLICKS = 20
TIMEOUT = 10


class Scenes:
    """The scenes. Each method returns its expectations, and whether each of them held."""

    def __init__(self, stub: pb_grpc.ProfileServiceStub, profiles: Profiles) -> None:
        self._stub = stub
        self._profiles = profiles

    def double_click(self) -> dict[str, bool]:
        """Save is clicked twice: two calls, which no key could identify as one"""
        patch = pb.Profile(name="profiles/clicked", display_name="A", interests=["chess"])
        first, second = self._update(patch), self._update(patch)
        return {
            "update_time stays": first.update_time == second.update_time,
            "etag stays": first.etag == second.etag,
            "one event is sent": self._events("profiles/clicked") == ["display_name,interests,name"],
        }

    def at_once(self) -> dict[str, bool]:
        """The same update arrives many times at once"""
        patch = pb.Profile(name="profiles/burst", email="b@example.com")
        with ThreadPoolExecutor(CLICKS) as pool:
            answers = list(pool.map(lambda _: self._update(patch).SerializeToString(), range(CLICKS)))
        return {
            f"all {CLICKS} answers are the same": len(set(answers)) == 1,
            "one event is sent": self._events("profiles/burst") == ["email,name"],
        }

    def two_editors(self) -> dict[str, bool]:
        """Two people edit the same version: the second is refused, and reads again"""
        name = "profiles/edited"
        self._update(pb.Profile(name=name, address=pb.Address(street="Main Street 1", city="Oslo")))
        read_by_both = self._get(name)
        moved = pb.Profile(name=name, etag=read_by_both.etag, address=pb.Address(street="Side Street 2"))
        renamed = pb.Profile(name=name, etag=read_by_both.etag, display_name="C")
        self._update(moved, "address.street")
        refused = self._refusal(renamed, "display_name")
        renamed.etag = self._get(name).etag
        both = self._update(renamed, "display_name") if refused else self._get(name)
        return {
            "the second is ABORTED, for its etag": refused.startswith("ABORTED: the etag is not"),
            "both changes are saved": (both.display_name, both.address.street) == ("C", "Side Street 2"),
            "fields outside the masks are unchanged": both.address.city == "Oslo",
            "each change sends one event": self._events(name)[1:] == ["address.street", "display_name"],
        }

    def cleared(self) -> dict[str, bool]:
        """A mask unsets the fields that the update leaves out, and must name existing fields"""
        name = "profiles/emptied"
        self._update(pb.Profile(name=name, display_name="D", email="d@example.com"))
        emptied = [self._update(pb.Profile(name=name), "email") for _ in range(2)]
        refused = self._refusal(pb.Profile(name=name), "address.planet")
        return {
            "the field is empty, the others are not": [emptied[0].email, emptied[0].display_name]
            == ["", "D"],
            "update_time stays": emptied[0].update_time == emptied[1].update_time,
            "one event is sent for it": self._events(name)[1:] == ["email"],
            "a field that does not exist is INVALID_ARGUMENT": "INVALID_ARGUMENT" in refused
            and "address.planet" in refused,
        }

    def _update(self, patch: pb.Profile, *mask: str) -> pb.Profile:
        request = pb.UpdateProfileRequest(profile=patch, update_mask=FieldMask(paths=mask))
        return self._stub.UpdateProfile(request, timeout=TIMEOUT).profile

    def _refusal(self, patch: pb.Profile, *mask: str) -> str:
        """Return why an update is refused; empty if it is not."""
        request = pb.UpdateProfileRequest(profile=patch, update_mask=FieldMask(paths=mask))
        call = self._stub.UpdateProfile.future(request, timeout=TIMEOUT)
        return f"{call.code().name}: {call.details()}" if call.exception() else ""

    def _get(self, name: str) -> pb.Profile:
        return self._stub.GetProfile(pb.GetProfileRequest(name=name), timeout=TIMEOUT).profile

    def _events(self, name: str) -> list[str]:
        return self._profiles.events(name)


def main() -> int:
    parser = argparse.ArgumentParser(description="Show updates that may be sent twice.")
    parser.add_argument("--careless", action="store_true", help="show a server that writes every update")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as on Ctrl-C: raise and clean up
    with ExitStack() as stack:
        database = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="profiles-"))) / "profiles.db"
        settings = [str(database), *(["--careless"] if options.careless else [])]
        server = stack.enter_context(Server("examples.update_profile.server", *settings))
        channel = stack.enter_context(grpc.insecure_channel(server.ready()))
        scenes = Scenes(pb_grpc.ProfileServiceStub(channel), Profiles(database))
        status = play_all((scenes.double_click, scenes.at_once, scenes.two_editors, scenes.cleared))
        server.stop()
    return status


if __name__ == "__main__":
    sys.exit(main())
