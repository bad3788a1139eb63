"""Starts a command in which bpf(2) fails, as in a container. Arguments: an errno, the command.

It stands in for a kernel or a container runtime that denies eBPF; children inherit it.
"""

from __future__ import annotations

import errno
import os
import sys

import seccomp


def main() -> None:
    rules = seccomp.SyscallFilter(defaction=seccomp.ALLOW)
    # Our own filter may be loaded with the no_new_privs that sudo in a test could not bear.
    rules.set_attr(seccomp.Attr.CTL_NNP, 0)
    rules.add_rule(seccomp.ERRNO(getattr(errno, sys.argv[1])), "bpf")
    rules.load()
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
