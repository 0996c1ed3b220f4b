"""The code of docs/updates.md works."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import grpc
from examples_pb.update_profile.v1 import profiles_pb2, profiles_pb2_grpc

from tests.support.pages import blocks


class Profiles:
    """One profile, and the events."""

    def __init__(self):
        self.stored = profiles_pb2.Profile()
        self.events = []

    def get(self, name):
        return self.stored

    def put(self, profile):
        self.stored = profile

    def send_event(self, name, paths):
        self.events.append(paths)


def test_the_handler_of_the_page_works():
    profiles = Profiles()
    names: dict[str, Any] = {
        "profiles_pb2": profiles_pb2,
        "profiles_pb2_grpc": profiles_pb2_grpc,
        "transaction": lambda: nullcontext(profiles),
    }
    (block,) = blocks("docs/updates.md")
    exec(compile(block, "updates.md", "exec"), names)
    server = grpc.server(ThreadPoolExecutor(1))
    profiles_pb2_grpc.add_ProfileServiceServicer_to_server(names["ProfileService"](), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        update = profiles_pb2_grpc.ProfileServiceStub(channel).UpdateProfile
        for etag, code in (("", "OK"), ("", "OK"), ('"other"', "ABORTED")):
            profile = profiles_pb2.Profile(name="profiles/1", email="a@example.com", etag=etag)
            call = update.future(profiles_pb2.UpdateProfileRequest(profile=profile), timeout=10)
            assert call.code().name == code
    server.stop(None).wait()
    assert profiles.events == [["email", "name"]]
