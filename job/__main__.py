from job.stop import STOP


def start() -> None:
    """The program. Signals are heard before anything that takes time is imported."""
    STOP.listen()
    try:
        from job.cli import main

        main()
    finally:
        STOP.ignore()


if __name__ == "__main__":
    start()
