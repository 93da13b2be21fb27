"""Builds `kdbusfs.native._native` (cffi, API mode) from the C files beside it.

Every `*.h` here is both included by the C sources and read by cffi: apart from lines that start with `#`
it may hold only declarations that cffi's parser understands (structs, prototypes, `static const int` values).
"""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
# Headers whose names start so are for the C sources alone: what belongs to one machine, and what several files share.
PRIVATE = ("arch_", "internal_")
HEADERS = sorted(path for path in HERE.glob("*.h") if not path.name.startswith(PRIVATE))
SOURCES = sorted(path for path in HERE.glob("*.c") if not path.name.startswith("_"))


def declarations() -> str:
    """The public declarations of all headers, without preprocessor lines."""
    lines = (line for header in HEADERS for line in header.read_text().splitlines())
    return "\n".join(line for line in lines if not line.startswith("#"))


ffibuilder = FFI()
ffibuilder.cdef(declarations())
ffibuilder.set_source(
    "kdbusfs.native._native",
    "\n".join(f'#include "{header.name}"' for header in HEADERS),
    include_dirs=[str(HERE)],
    sources=[f"kdbusfs/native/{source.name}" for source in SOURCES],
    depends=[str(header) for header in HERE.glob("*.h")],
    extra_compile_args=["-O2", "-std=gnu11", "-Wall", "-Wextra", "-fvisibility=hidden"],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
