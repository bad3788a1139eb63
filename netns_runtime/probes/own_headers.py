"""The header tree that bcc compiles our programs against: seven small files of our own.

bcc brings linux/bpf.h itself and otherwise asks a kernel's headers for integer types, byte order,
a version and the page size. With these instead, the probe compiles to the same programs whatever
headers are or are not installed. Seen with bcc 0.26 and 0.31; should another bcc want more, `load`
falls back to installed headers (headers.merged_tree). OSError if the cache cannot be written.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

# -include'd by bcc before anything else, so what follows it may rely on it.
_KCONFIG: Final = """\
#define CONFIG_BPF_SYSCALL 1
"""
_UAPI_TYPES: Final = """\
#pragma once
typedef signed char __s8;
typedef unsigned char __u8;
typedef short __s16;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;
typedef __u64 __attribute__((aligned(8))) __aligned_u64;
typedef __u16 __le16, __be16, __sum16;
typedef __u32 __le32, __be32, __wsum;
typedef __u64 __le64, __be64;
"""
_TYPES: Final = """\
#pragma once
#include <uapi/linux/types.h>
typedef __s8 s8;
typedef __u8 u8;
typedef __s16 s16;
typedef __u16 u16;
typedef __s32 s32;
typedef __u32 u32;
typedef __s64 s64;
typedef __u64 u64;
typedef _Bool bool;
typedef __SIZE_TYPE__ size_t;
typedef __UINTPTR_TYPE__ uintptr_t;
enum { false, true };
#define NULL ((void *)0)
#define __always_inline inline __attribute__((__always_inline__))
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define __BE16(x) __builtin_bswap16(x)
#define __BE32(x) __builtin_bswap32(x)
#else
#define __BE16(x) ((u16)(x))
#define __BE32(x) ((u32)(x))
#endif
#define htons(x) __BE16(x)
#define ntohs(x) __BE16(x)
#define htonl(x) __BE32(x)
#define ntohl(x) __BE32(x)
"""
# bcc asks only whether it is at least 4.8; nothing loads differently by it (since Linux 5.0).
_VERSION: Final = """\
#pragma once
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 18, 0)
"""
_NOTHING: Final = "/* bcc includes this file, and nothing in it is used. */\n"


def texts(page_size: int) -> dict[str, str]:
    """Every file by its path in the tree."""
    return {
        "include/linux/kconfig.h": _KCONFIG,
        "include/linux/types.h": _TYPES,
        "include/linux/version.h": _VERSION,
        "include/uapi/linux/types.h": _UAPI_TYPES,
        "include/asm/page.h": f"#pragma once\n#define PAGE_SIZE {page_size}\n",
        **dict.fromkeys(
            (
                "include/linux/bpf_common.h",
                "include/linux/log2.h",
                "include/uapi/linux/bpf.h",
                "include/uapi/linux/if_packet.h",
            ),
            _NOTHING,
        ),
    }


def own_tree(cache: Path) -> Path:
    """The directory for BCC_KERNEL_SOURCE, made once under a name that says what is in it."""
    files = texts(os.sysconf("SC_PAGE_SIZE"))
    digest = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:12]
    tree = cache / "headers" / f"own-{digest}"
    if (tree / "complete").exists():
        return tree
    for name, text in files.items():
        path = tree / name
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
    (tree / "arch").mkdir(exist_ok=True)
    (tree / "complete").touch(mode=0o644)
    return tree
