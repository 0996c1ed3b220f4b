"""Logic shared by all interceptors, without I/O: no module here imports grpc, redis or code that does I/O."""
