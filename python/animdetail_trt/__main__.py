"""``python -m animdetail_trt``, the same as ``animdetail-trt``."""

import sys

try:
    from animdetail_trt.cli import main
except KeyboardInterrupt:  # so early that main could not say it better
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
