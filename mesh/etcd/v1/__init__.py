"""Generated from protos/mesh/etcd/v1 by scripts/gen; never edited."""
