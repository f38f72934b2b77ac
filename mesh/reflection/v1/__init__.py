"""Generated from protos/mesh/reflection/v1 by scripts/gen; never edited."""
