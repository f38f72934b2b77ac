"""etcd's wire protocol, as far as the mesh uses it."""
