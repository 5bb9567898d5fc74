"""A machine that looks for faults: mutated files, random calls, random sequences of calls. See `run`."""

import sys
from pathlib import Path

# The parts use the generators of the tests of operators and of memory failures.
sys.path += [str(Path(__file__).resolve().parents[1] / folder) for folder in ("ops", "model")]
