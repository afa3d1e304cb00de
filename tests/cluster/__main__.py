"""Makes ``python -m tests.cluster`` work, and says so where Python is too old to read the rest."""

import sys

if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036 - this line is for those Pythons
        sys.exit("error: Python 3.11 or later is needed; this is " + sys.version.split()[0])
    from tests.cluster.cli import main

    sys.exit(main())
