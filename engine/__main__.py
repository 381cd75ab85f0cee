"""`python -m engine FD`: what the parent starts; see process.py."""

import sys

from engine.process import main

main(int(sys.argv[1]))
