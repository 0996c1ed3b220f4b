"""The server interceptors, for grpc and grpc.aio."""
