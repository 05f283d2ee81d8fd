"""`python -m directdet` is `directdet`."""

import sys

from directdet.front.cli import main

if __name__ == "__main__":
    sys.exit(main())
