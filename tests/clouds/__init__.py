"""Object storage for the tests: emulators of the services, each a process of its own that fails on demand."""
