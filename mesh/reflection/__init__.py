"""gRPC's reflection protocol."""
