import sys

from lo_framework.meta_train.cli import main

if __name__ == "__main__":
    sys.exit(main())
