"""One file a migration, in order. One that was released is never changed."""
