"""What the C library does with freed memory, which is the process's to decide, and no library's."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h's
_NEVER = 2**31 - 1
_LARGEST_KEPT_BYTES = 32 << 20  # glibc takes no more


def keep_freed_memory() -> None:
    """Have the C library keep the memory that tensors of up to 32 MiB leave, for the next ones.

    glibc's usual way gives much of it back after each layer, and the kernel clears every page anew for the one after:
    up to two fifths of the time of the VAE on a CPU (benchmarks/README.md). Other C libraries stay as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl and macOS have none; Windows finds no library by this name
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _NEVER)
