"""The client interceptors, for grpc and grpc.aio."""
