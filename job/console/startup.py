"""What has to be settled before anything else is imported: where modules come from.

Only modules that Python has loaded by itself may be imported up here.
"""

import os
import sys

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120  # pathlib imports much.
_MIN_ADDRESS_SPACE = 6 * 2**30  # Measured: 4.4 GB for the smallest run on a CPU; 3 GB were too few.
_STANDARD_LIBRARY = os.path.dirname(os.__file__)  # noqa: PTH120


def keep_foreign_modules_out() -> None:
    """Import nothing from the current folder, in this process and in those that it starts.

    Python looks there first for `python -m` and `python -c`, with which multiprocessing starts its helpers, and for an empty
    entry of PYTHONPATH. A user's `pickle.py` would run in the place of the standard library's. What is imported before the
    first line of this program runs cannot be prevented here: `transfer-job` and `python -P -m job` do that.
    """
    if sys.flags.ignore_environment and not sys.flags.safe_path:  # Then the helpers would not see PYTHONSAFEPATH.
        os.execv(sys.executable, [sys.executable, "-P", *sys.orig_argv[1:]])  # noqa: S606
    named = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    here = _current_folder()
    # What Python adds for the current folder stands before the standard library.
    end = sys.path.index(_STANDARD_LIBRARY) if _STANDARD_LIBRARY in sys.path else len(sys.path)
    found_here = [entry for entry in sys.path[:end] if entry in ("", here)]
    if found_here and here == _ROOT:  # A checkout that is not installed: this package is nowhere else.
        named.insert(0, here)
    if here not in [os.path.abspath(entry) for entry in named]:  # noqa: PTH100  # Else somebody wants it so.
        sys.path[:end] = [entry for entry in sys.path[:end] if entry not in found_here]
    os.environ["PYTHONSAFEPATH"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join(named)
    if not named:
        del os.environ["PYTHONPATH"]


def refuse_small_address_space() -> None:
    """End with 2 below a limit (`ulimit -v`) in which no run can finish.

    Libraries end in many ways where it is met: an ImportError, an error of TensorFlow's that says nothing, `abort()`.
    """
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY or limit >= _MIN_ADDRESS_SPACE:
        return
    os.write(
        2,
        f"\nError: the address space of a process is limited to {limit / 2**30:.1f} GiB here (`ulimit -v`), and a run needs "
        f"at least {_MIN_ADDRESS_SPACE / 2**30:.0f} GiB, most of it never used. Start it below `ulimit -v unlimited`, and "
        "limit its memory with --mem (Slurm) or --memory (Docker), if it must be limited.\n".encode(),
    )
    sys.exit(2)


def _current_folder() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109
    except OSError:  # It was removed.
        return None
