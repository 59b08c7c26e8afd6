"""`python -m worker.diagnosis [FILE]`: as `handler.py --diagnose`, also if packages are missing."""

from __future__ import annotations

import os
import sys

from worker.diagnosis.report import write

if __name__ == "__main__":
    sys.exit(write(sys.argv[1] if sys.argv[1:] else "", os.environ))
