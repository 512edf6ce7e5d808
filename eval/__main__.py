import sys

from lo_framework.eval.cli import main

if __name__ == "__main__":
    sys.exit(main())
