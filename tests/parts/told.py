"""Prints what this process has been given, and ends with the code that it is told.

python -m tests.parts.told CODE [MORE ...]
"""

import atexit
import json
import os
import sys
import tempfile

if __name__ == "__main__":
    given = {
        "arguments": sys.argv[1:],
        "read": sys.stdin.read(),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "temporary": tempfile.gettempdir(),
        "parent": os.getppid(),
        "modules": sys.path,
        "is_warm": "tensorflow" in sys.modules,
    }
    print(json.dumps(given))
    print("told", file=sys.stderr)
    atexit.register(print, "over", file=sys.stderr)
    sys.exit(int(sys.argv[1]))
