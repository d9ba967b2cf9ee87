from job.stop import STOP, ignore_signals


def start() -> None:
    """The program. Signals are heard before anything that takes time is imported."""
    STOP.listen()
    try:
        from job.cli import main

        main()
    finally:
        ignore_signals()  # Python gives handlers back to the system before it ends, and the exit code is decided.


if __name__ == "__main__":
    start()
