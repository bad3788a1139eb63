"""Reads a BPF ring buffer in pure Python, by mapping it.

The reader is the ring's only consumer and never waits; a person who wants to sleep polls `fileno`.
It ends when closed. Layout (kernel/bpf/ringbuf.c): one writable page holds the consumer's position,
one read-only page the producer's, and the data is mapped twice in a row, so that no record wraps.
"""

from __future__ import annotations

import mmap
import os
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import TracebackType

_BUSY: Final = 1 << 31
_DISCARDED: Final = 1 << 30
_HEADER: Final = 8


class RingReader:
    """The consumer of one ring. Owns `fd`, the map's descriptor; `size` is its bytes of data."""

    def __init__(self, fd: int, size: int) -> None:
        page = mmap.PAGESIZE
        self._fd = fd
        self._mask = size - 1
        self._consumer_map = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._producer_map = mmap.mmap(
            fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page
        )
        self._view = memoryview(self._producer_map)
        # Cast views read and write a position with one aligned access; struct would copy bytes.
        self._consumer = memoryview(self._consumer_map).cast("Q")
        self._producer = self._view[:8].cast("Q")
        self._data = self._view[page:]
        self._headers = self._view[page:].cast("I")
        self._barrier = threading.Lock()

    def fileno(self) -> int:
        """Readable while there is something to read."""
        return self._fd

    def _produced(self) -> int:
        position = self._producer[0]
        # Taking a lock is an acquire: on machines that reorder loads, the records are read after
        # the position that covers them. The kernel stores both with release.
        with self._barrier:
            return position

    def skip(self) -> None:
        """Drop what is there: a ring that served another sandbox starts afresh."""
        self._consumer[0] = self._produced()

    def read(self, limit: int = 1024) -> list[bytes]:
        """Up to `limit` records, oldest first; empty when there is none yet."""
        records: list[bytes] = []
        position = self._consumer[0]
        produced = self._produced()
        while position < produced and len(records) < limit:
            start = position & self._mask
            header = self._headers[start >> 2]
            with self._barrier:
                if header & _BUSY:
                    break
            size = header & ~(_BUSY | _DISCARDED)
            if not header & _DISCARDED:
                records.append(bytes(self._data[start + _HEADER : start + _HEADER + size]))
            position += (_HEADER + size + 7) & ~7
            self._consumer[0] = position
        return records

    def close(self) -> None:
        """Unmap and close. Twice is once."""
        if self._fd < 0:
            return
        for view in (self._consumer, self._producer, self._headers, self._data, self._view):
            view.release()
        self._consumer_map.close()
        self._producer_map.close()
        os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> RingReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
