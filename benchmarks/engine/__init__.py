"""Compares the speed of the engine with other libraries; see `python -m benchmarks.engine --help`.

The modules that sides in other environments import (workload, feed, job) need only Python's
standard library.
"""
