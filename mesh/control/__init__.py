"""The control store (etcd): layout, records, and a watch that loses nothing."""
