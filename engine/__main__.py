"""`python -m engine FD` starts an engine process; see process.py."""

import sys

from engine.process import main

main(int(sys.argv[1]))
