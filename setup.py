"""Builds the C extension, and compiles what every message passes through; all else stands in pyproject.toml.

The modules below are ordinary Python and run as such where they are not compiled: KDBUSFS_PURE=1 leaves it out.
"""

import os
import sysconfig
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mypyc.build import include_dir, mypycify
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

COMPILED = (
    "kdbusfs/base/*.py",
    "kdbusfs/abi/*.py",
    "kdbusfs/abi/*/*.py",
    "kdbusfs/core/*.py",
    "kdbusfs/bus1/*.py",
    "kdbusfs/fuse/files.py",
    "kdbusfs/fuse/pending.py",
    "kdbusfs/fuse/requests.py",
    "kdbusfs/fuse/responder.py",
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


class Built(Extension):
    """A module that is compiled already, in the working tree."""


class BuildInParallel(build_ext):
    """Compile one file per cpu at a time, and no object again that is newer than all it is made of.

    A build that was interrupted continues with the file that was next.
    """

    def build_extension(self, extension: Extension) -> None:
        if not isinstance(extension, Built):
            super().build_extension(extension)
        elif not self.inplace:
            target = self.get_ext_fullpath(extension.name)
            self.mkpath(str(Path(target).parent))
            self.copy_file(str(path_of(extension.name)), target)

    def build_extensions(self) -> None:
        self.compiler.compile = self._compile_with(self.compiler.compile)
        super().build_extensions()

    def _compile_with(self, compile_serially: Callable[..., list[str]]) -> Callable[..., list[str]]:
        always = [__file__, *map(str, Path(include_dir()).glob("*.h"))]

        def compile_in_parallel(
            sources: list[str], output_dir: str, depends: list[str], **options: object
        ) -> list[str]:
            def compile_one(source: str) -> str:
                (built,) = self.compiler.object_filenames([source], output_dir=output_dir)
                if self.force or newer_group([source, *depends, *always], built):
                    compile_serially([source], output_dir=output_dir, depends=depends, **options)
                return str(built)

            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                return list(pool.map(compile_one, sources))

        return compile_in_parallel


def compiled() -> list[str]:
    """The paths of the modules to compile; a package's own module has nothing to gain."""
    if os.environ.get("KDBUSFS_PURE", "") not in ("", "0"):
        return []
    found = (path for pattern in COMPILED for path in Path().glob(pattern))
    return sorted(str(path) for path in found if path.name != "__init__.py")


def path_of(module: str) -> Path:
    """Of a module that was compiled in the working tree, for this Python."""
    return Path(module.replace(".", "/") + sysconfig.get_config_var("EXT_SUFFIX"))


def built(modules: list[str]) -> list[Built]:
    """What was compiled in the working tree; nothing if some source has changed since."""
    names = ["kdbusfs__mypyc", *(module.removesuffix(".py").replace("/", ".") for module in modules)]
    paths = [path_of(name) for name in names]
    if not all(path.exists() for path in paths) or newer_group([*modules, __file__], str(paths[0])):
        return []
    return [Built(name, []) for name in names]


modules = compiled()
calls = Extension(
    "kdbusfs.native._calls",
    ["kdbusfs/native/_calls.c"],
    depends=["kdbusfs/native/channel.h"],
    extra_compile_args=["-O2", "-std=gnu11", "-Wall", "-Wextra"],
)
# A C file for each module, so that all cpus compile, and a change compiles little. -O1 takes two thirds of the time of
# -O3, and a call of the core takes as long with both: what it does is dictated by mypyc's calls of the runtime.
core = built(modules) if modules else []
if modules and not core:
    core = mypycify([*modules, "--strict"], group_name="kdbusfs", multi_file=True, opt_level="1")
setup(
    cffi_modules=["kdbusfs/native/build_native.py:ffibuilder"],
    cmdclass={"build_ext": BuildInParallel},
    ext_modules=[calls, *core],
)
