"""Noticing that another process has ended, whatever this one is doing.

A sum over processes fails or hangs when one of them is gone; an evaluation of minutes does not even
try. So each process keeps a connection to the first one, and a thread that waits for it to close:
the kernel closes it when a process is killed, and finds out by its keep-alive probes when a machine
is. A busy process cannot be mistaken for a dead one. What hangs is left to the sums' own limit.
"""

from __future__ import annotations

import os
import secrets
import select
import socket
import sys
import threading
import time
from typing import Protocol

from supple.files import keep_from_forks

JOIN_SECONDS = 60.0
"""Within which every process connects to the first [s]."""
GRACE_SECONDS = 3.0
"""How long the main thread has to end by itself, its own error being the better one [s]."""
PROBES = (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 4))
"""A machine that does not answer for 17 s is gone; systems without these take their own time."""
GOODBYE = b"."
TOKEN_BYTES = 16
FAILED = 1


class Store(Protocol):
    """As much of torch's store as is needed."""

    def set(self, key: str, value: str) -> None: ...  # noqa: D102

    def get(self, key: str) -> bytes: ...  # noqa: D102


class Watch:
    """The connections of one process, watched by a thread until ``stop``.

    Args:
        rank: of this process.
        size: how many there are.
        address: of the first one's machine.
        store: through which the first one tells its port.

    Raises:
        OSError: the processes cannot connect.
    """

    def __init__(self, rank: int, size: int, address: str, store: Store) -> None:
        self._rank, self._size = rank, size
        self.lost = ""
        """Says which process has ended before its time; empty while none has."""
        self.advice = "see what it said"
        """Appended to what is said then."""
        self._stopped = threading.Event()
        self._peers = self._accept(store) if rank == 0 else {0: self._connect(address, store)}
        for peer in self._peers.values():
            _probe(peer)
            keep_from_forks(peer)
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def _accept(self, store: Store) -> dict[int, socket.socket]:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        token = secrets.token_bytes(TOKEN_BYTES)
        found: dict[int, socket.socket] = {}
        with socket.create_server(("", 0), family=family, dualstack_ipv6=both) as server:
            store.set("supple/watch", f"{server.getsockname()[1]} {token.hex()}")
            deadline = time.monotonic() + JOIN_SECONDS
            while len(found) < self._size - 1:
                server.settimeout(max(deadline - time.monotonic(), 0.01))
                peer, _ = server.accept()
                peer.settimeout(5.0)
                said = _read(peer, TOKEN_BYTES + 4)
                if said[:TOKEN_BYTES] == token and len(said) == TOKEN_BYTES + 4:
                    found[int.from_bytes(said[TOKEN_BYTES:], "big")] = peer
                else:  # a stranger's
                    peer.close()
        return found

    def _connect(self, address: str, store: Store) -> socket.socket:
        port, token = store.get("supple/watch").decode().split()
        peer = socket.create_connection((address, int(port)), timeout=JOIN_SECONDS)
        peer.sendall(bytes.fromhex(token) + self._rank.to_bytes(4, "big"))
        return peer

    def _run(self) -> None:
        left = dict(self._peers)
        while left and not self._stopped.is_set():
            ready, _, _ = select.select(list(left.values()), [], [], 0.5)
            for rank, peer in list(left.items()):
                if peer not in ready:
                    continue
                if _read(peer, 1) == GOODBYE:
                    del left[rank]
                elif not self._stopped.is_set():
                    self._end(rank)
                    return

    def _end(self, rank: int) -> None:
        """End this process too: what it is doing may take long, or for ever."""
        self.lost = f"process {rank} of {self._size} ended before the others; {self.advice}"
        if not self._stopped.wait(GRACE_SECONDS):
            print(f"supple: error: process {self._rank}: {self.lost}", file=sys.stderr, flush=True)
            os._exit(FAILED)

    def stop(self) -> None:
        """Part in peace: tell the others not to wait."""
        self._stopped.set()
        for peer in self._peers.values():
            try:
                peer.sendall(GOODBYE)
            except OSError:  # it has parted before
                continue
        self._close()

    def abandon(self) -> None:
        """Part without a word, which ends the others; this process ends soon, come what may."""
        last = threading.Timer(GRACE_SECONDS, os._exit, (FAILED,))
        last.daemon = True
        last.start()
        self._stopped.set()
        self._close()

    def _close(self) -> None:
        self._thread.join(GRACE_SECONDS)
        for peer in self._peers.values():
            peer.close()


def _probe(peer: socket.socket) -> None:
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in PROBES:
        option = getattr(socket, name, None)
        if option is not None:
            peer.setsockopt(socket.IPPROTO_TCP, option, value)


def _read(peer: socket.socket, count: int) -> bytes:
    """So many bytes, or fewer where the connection ended or broke."""
    data = b""
    try:
        while len(data) < count and (part := peer.recv(count - len(data))):
            data += part
    except OSError:
        pass
    return data
