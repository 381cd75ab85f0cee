"""How fast the engine is, against what people use today. `python -m benchmarks.engine --help`

What the sides in other environments import (workload, feed, job) loads nothing but Python's
own library.
"""
