"""`python -m worker.engine FD`: what the parent starts; see process.py."""

import sys

from worker.engine.process import main

main(int(sys.argv[1]))
