import sys

from lo_framework.cli import main

if __name__ == "__main__":
    sys.exit(main())
