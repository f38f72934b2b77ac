"""A whole mesh on one machine: certificates, etcd, Ray clusters, supervision."""

from mesh.embedded.commands import down, raise_epoch, status, up

__all__ = ["down", "raise_epoch", "status", "up"]
