"""The programs `kron` and `kron-train`, as the package's commands."""

import os
import signal
import sys

# As the programs themselves set them, unless the user has: freed blocks stay, in pages of 2 MiB; candle's own pool
# has no thread beside the one that calls it; and a thread has a stack as large as the main thread's.
_DEFAULTS = {
    "MIMALLOC_PURGE_DELAY": "-1",
    "MIMALLOC_ALLOW_LARGE_OS_PAGES": "1",
    "CANDLE_NUM_THREADS": "1",
    "RUST_MIN_STACK": "8388608",
}


def _run(name: str) -> int:
    for variable, value in _DEFAULTS.items():
        os.environ.setdefault(variable, value)
    # Python's own handler would wait for the program to return.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # After the variables: the allocator reads them when the extension is loaded.
    from . import _kron

    return getattr(_kron, name)([name.replace("_", "-"), *sys.argv[1:]])


def kron() -> int:
    return _run("kron")


def kron_train() -> int:
    return _run("kron_train")
