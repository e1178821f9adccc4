"""``python -m animdetail_trt``, the same as ``animdetail-trt``."""

import sys

from animdetail_trt.cli import main

if __name__ == "__main__":
    sys.exit(main())
