"""Serves a mount of the fake domain: `channel_daemon.py MOUNTPOINT [TREE_TIMEOUT_MS]`.

Prints "ready" when it is mounted, and at its end one line of JSON with its counters.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import socket
import sys
import threading

import pyfuse3
import trio

from kdbusfs.fuse.channel import Amendments, Channel
from kdbusfs.fuse.error_log import ErrorLog
from kdbusfs.fuse.files import OpenFiles
from kdbusfs.fuse.requests import Requests, SharedState
from kdbusfs.fuse.server import Server, Wakeup
from tests.support.channel_fakes import Caller, Domain
from tests.support.channel_tree import Tree


def mount(fuse_fd: int, mountpoint: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={fuse_fd},rootmode=40555,user_id=0,group_id=0,allow_other,default_permissions"
    if libc.mount(b"channel-test", mountpoint.encode(), b"fuse.channel-test", 0, options.encode()):
        raise OSError(ctypes.get_errno(), "mount")


def main() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    mountpoint = sys.argv[1]
    fuse_fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        for option in (32, 33):  # SO_SNDBUFFORCE, SO_RCVBUFFORCE
            end.setsockopt(socket.SOL_SOCKET, option, 4 << 20)
    domain = Domain()
    wakeup = Wakeup()
    channel = Channel(fuse_fd, ours.fileno(), wakeup.event_fd)
    if len(sys.argv) > 2:
        channel.set_tree_timeout(int(sys.argv[2]))
    files = OpenFiles(channel)
    tree = Tree(domain, files)
    errors = ErrorLog()
    requests = Requests(channel, SharedState(files, domain, Caller, None, errors))
    amendments = Amendments(tree, files.open_answer, passthrough=True)
    server = Server(channel, amendments, requests, domain, wakeup, tree, errors=errors)

    pyfuse3.init(tree, f"/dev/fd/{theirs.fileno()}", {"fsname=channel-test"})
    threading.Thread(target=trio.run, args=(pyfuse3.main,), daemon=True).start()
    signal.signal(signal.SIGTERM, lambda number, frame: server.stop())
    mount(fuse_fd, mountpoint)
    print("ready", flush=True)
    served = server.run()
    left = {
        "served": served,
        "is_shut": domain.is_shut,
        "passthrough": amendments.passthrough,
        "forgotten": tree.forgotten,
        "slots": channel.slots,
        **requests.stats(),
    }
    print(json.dumps(left), flush=True)
    os._exit(0)


main()
