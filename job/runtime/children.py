"""Child processes of multiprocessing in a program that may be called from any script or notebook."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def without_main() -> Iterator[None]:
    """Give a block in which child processes are started without the main module of this process.

    multiprocessing imports that module again in each child. A script without `if __name__ == "__main__"` would start the
    job again there.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
