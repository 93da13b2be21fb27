"""Builds the C extension, and compiles what every message passes through; all else stands in pyproject.toml.

The modules below are ordinary Python and run as such where they are not compiled: KDBUSFS_PURE=1 leaves it out.
"""

import os
from pathlib import Path

from mypyc.build import mypycify
from setuptools import Extension, setup

COMPILED = (
    "kdbusfs/abi/*.py",
    "kdbusfs/core/*.py",
    "kdbusfs/fuse/files.py",
    "kdbusfs/fuse/requests.py",
    "kdbusfs/fuse/server.py",
    "kdbusfs/host/caller.py",
    "kdbusfs/host/copies.py",
    "kdbusfs/host/credentials.py",
    "kdbusfs/host/memory.py",
    "kdbusfs/host/metadata.py",
    "kdbusfs/host/namespaces.py",
    "kdbusfs/host/proc.py",
    "kdbusfs/host/store_memory.py",
)


def compiled() -> list[str]:
    """The paths of the modules to compile; a package's own module has nothing to gain."""
    if os.environ.get("KDBUSFS_PURE", "") not in ("", "0"):
        return []
    found = (path for pattern in COMPILED for path in Path().glob(pattern))
    return sorted(str(path) for path in found if path.name != "__init__.py")


modules = compiled()
calls = Extension(
    "kdbusfs.native._calls",
    ["kdbusfs/native/_calls.c"],
    depends=["kdbusfs/native/channel.h"],
    extra_compile_args=["-O2", "-std=gnu11", "-Wall", "-Wextra"],
)
setup(
    cffi_modules=["kdbusfs/native/build_native.py:ffibuilder"],
    ext_modules=[calls, *(mypycify([*modules, "--strict"], group_name="kdbusfs") if modules else [])],
)
