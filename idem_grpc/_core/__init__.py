"""The logic that all interceptors share, without I/O: no module here imports grpc, redis or an edge."""
