"""A whole mesh on one machine: certificates, etcd, Ray clusters, supervision."""
