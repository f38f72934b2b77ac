"""A whole mesh on one machine: certificates, etcd, Ray clusters, supervision."""

from mesh.embedded.commands import Operator, down, operator, raise_epoch, samples, status, up

__all__ = ["Operator", "down", "operator", "raise_epoch", "samples", "status", "up"]
