"""Serve profiles: ``python -m examples.update_profile.server profiles.db``."""

import argparse
from pathlib import Path

import grpc
from examples_pb.update_profile.v1 import profiles_pb2 as pb
from examples_pb.update_profile.v1 import profiles_pb2_grpc as pb_grpc

from examples.processes import serve
from examples.update_profile.profiles import Profiles
from idem_grpc import status_of, updates


class ProfileService(pb_grpc.ProfileServiceServicer):
    def __init__(self, profiles: Profiles) -> None:
        self._profiles = profiles

    def GetProfile(
        self, request: pb.GetProfileRequest, context: grpc.ServicerContext
    ) -> pb.GetProfileResponse:
        return pb.GetProfileResponse(profile=self._profiles.get(request.name))

    def UpdateProfile(
        self, request: pb.UpdateProfileRequest, context: grpc.ServicerContext
    ) -> pb.UpdateProfileResponse:
        try:
            profile = self._profiles.update(request.profile, request.update_mask)
        except updates.UpdateRefused as refused:
            context.abort_with_status(status_of(refused))
        return pb.UpdateProfileResponse(profile=profile)


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve profiles.")
    parser.add_argument("database", type=Path, help="SQLite file")
    parser.add_argument("--careless", action="store_true", help="write every update and send an event for it")
    options = parser.parse_args()
    service = ProfileService(Profiles(options.database, careless=options.careless))
    serve("profiles", [], lambda server: pb_grpc.add_ProfileServiceServicer_to_server(service, server))


if __name__ == "__main__":
    main()
