"""kdbusfs: the kdbus message bus (ABI v3) for unmodified programs, as a FUSE filesystem."""

__version__ = "0.1.0"
