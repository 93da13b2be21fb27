"""bus1: peers, nodes and handles, without I/O and without Linux.  It knows nothing of kdbus (docs/design.md)."""
