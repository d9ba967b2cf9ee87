import gc
import os
import sys


def start() -> None:
    """Run the program. Signals are heard before anything that takes time is imported."""
    from job.console.startup import keep_foreign_modules_out, leave_out_optional_imports, refuse_small_limits

    keep_foreign_modules_out()
    leave_out_optional_imports()
    from job.console.streams import open_closed_descriptors, replace_standard_streams, restart_in_utf8

    open_closed_descriptors()
    from job.console.log import LOG

    LOG.begin(sys.argv[1:], os.environ)
    refuse_small_limits()
    restart_in_utf8()
    replace_standard_streams()
    from job.runtime.stop import STOP, ignore_signals

    STOP.listen()
    STOP.last_words.append(lambda error: LOG.last_words(error.exit_code, str(error)))
    sys.excepthook = LOG.bug
    try:
        from job.cli import main

        main()
    finally:
        ignore_signals()  # Python gives handlers back to the system before it ends, and the exit code is decided.
        gc.freeze()  # Otherwise it looks for garbage among all objects before it ends: a second after TensorFlow's import.


if __name__ == "__main__":
    start()
