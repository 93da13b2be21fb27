"""The C beneath `host` and `fuse`: it moves bytes and makes system calls, and decides nothing about kdbus."""
