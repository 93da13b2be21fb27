"""Runs a command under a seccomp filter: `confine.py [CALL=ERRNO ...] COMMAND...`.

The filter refuses the named system calls with that errno (`ptrace=EPERM`), and allows all others.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import sys

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2
_LOAD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBERS = {
    "x86_64": {"ptrace": 101, "mount": 165, "process_vm_readv": 310, "pidfd_getfd": 438},
    "aarch64": {"ptrace": 117, "mount": 40, "process_vm_readv": 270, "pidfd_getfd": 438},
}


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def confine(refused: dict[str, int]) -> None:
    """Install a seccomp filter in this process that refuses calls with these errno.  Raises OSError."""
    numbers = _NUMBERS[os.uname().machine]
    lines = [_Instruction(_LOAD, 0, 0, 0)]
    for name, error in refused.items():
        lines += [_Instruction(_IF_EQUAL, 0, 1, numbers[name]), _Instruction(_RETURN, 0, 0, _ERRNO | error)]
    lines.append(_Instruction(_RETURN, 0, 0, _ALLOW))
    instructions = (_Instruction * len(lines))(*lines)
    program = _Program(len(lines), ctypes.addressof(instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.prctl(_PR_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")


def main() -> None:
    words = sys.argv[1:]
    refused = {}
    while match := re.fullmatch(r"(\w+)=(E\w+)", words[0]):
        refused[match[1]] = getattr(errno, match[2])
        del words[0]
    confine(refused)
    os.execvp(words[0], words)


if __name__ == "__main__":
    main()
