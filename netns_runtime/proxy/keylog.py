"""TLS contexts whose handshakes tell their keys, for as long as somebody captures packets.

Python logs keys to a file that it opens by name, and the proxy can open none for writing once it
has its system call filter. So a `Keylog` is made before: a handful of contexts that log to one file
in memory, without a certificate and without roots, which nobody uses while nobody captures. What a
handshake logged is read out at once (`took`), and nothing of it stays. Nothing here waits.

Theory of operation. `server_context` loads the host's leaf into the context of the ALPN that is
wanted and gives that: a connection takes its certificate along when it is made (SSL_new(3)), which
is before anything else can load another. `sslobject_class` is Python's own seam for what a context
wraps; ours reads the log after each step of a handshake, while the caller still has the bytes in
hand that the keys are for.
"""

from __future__ import annotations

import math
import os
import ssl
import time
from typing import TYPE_CHECKING, Any, Final

from netns_runtime.proxy.ca import LEAF_RENEWED, bare_server_context, load_chain
from netns_runtime.proxy.secure import SPOKEN, rootless_context

if TYPE_CHECKING:
    from collections.abc import Callable

    from netns_runtime.proxy.ca import Authority

LEAVES: Final = 256
"""Leaves kept while a capture goes on."""


class Keylog:
    """`took` is given the lines of each handshake, in the NSS key log format, and whether it was
    one with an upstream. `upstream_ca` are roots beside the system's, in PEM."""

    def __init__(self) -> None:
        self.took: Callable[[str, bool], None] = lambda lines, is_upstream: None
        self.upstream_ca: bytes | None = None
        self._fds = tuple(os.memfd_create("keys", os.MFD_CLOEXEC) for _ in range(2))
        self._servers = {
            alpn: self._logging(bare_server_context(alpn), is_upstream=False)
            for alpn in (*SPOKEN, None)
        }
        self._client = self._logging(rootless_context(), is_upstream=True)
        self._has_roots = False
        self._leaves: dict[str, tuple[float, bytes]] = {}
        for fd in self._fds:
            # Python begins each log with a line of its own.
            os.ftruncate(fd, 0)

    def server_context(self, authority: Authority, host: str, alpn: str | None) -> ssl.SSLContext:
        """As `Authority.context_for`, for the one connection that is made at once. Raises
        ValueError as that does."""
        now = time.time()
        made, leaf = self._leaves.get(host, (-math.inf, b""))
        if abs(now - made) >= LEAF_RENEWED:
            if len(self._leaves) >= LEAVES:
                self._leaves.clear()
            leaf = authority.leaf_for(host)
            self._leaves[host] = now, leaf
        context = self._servers[alpn]
        load_chain(context, leaf)
        return context

    def client_context(self, like: ssl.SSLContext) -> ssl.SSLContext | None:
        """As `like`, which dials upstreams otherwise; None where its roots cannot be had again."""
        if not self._has_roots:
            self._client.set_default_verify_paths()
            if self.upstream_ca:
                self._client.load_verify_locations(cadata=self.upstream_ca.decode("ascii"))
            self._has_roots = True
        has_all = self._client.cert_store_stats()["x509"] >= like.cert_store_stats()["x509"]
        return self._client if has_all else None

    def forget(self) -> None:
        """Let go of what only a capture needs."""
        self._leaves.clear()

    def close(self) -> None:
        """Let go of the files; the contexts keep theirs."""
        for fd in self._fds:
            os.close(fd)

    def _logging(self, context: ssl.SSLContext, *, is_upstream: bool) -> ssl.SSLContext:
        fd = self._fds[is_upstream]

        def drain() -> None:
            size = os.fstat(fd).st_size
            if size:
                lines = os.pread(fd, size, 0).decode("ascii", "ignore")
                os.ftruncate(fd, 0)
                self.took(lines, is_upstream)

        class Logged(ssl.SSLObject):
            def do_handshake(self, *arguments: Any) -> None:
                try:
                    super().do_handshake(*arguments)
                finally:
                    drain()

        context.keylog_filename = f"/proc/self/fd/{fd}"
        context.sslobject_class = Logged
        return context
