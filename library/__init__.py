"""What stages, commands and the stand-in share. It imports none of them.

Modules directly here (files, params, paths, how a program starts, …) compute no result, so no stage
of dvc.yaml depends on them. Code that computes is in the packages below, and stages depend on it
file by file.
"""

import os

# Threads that wait for others sleep in place of spinning: beside one busy process spinning makes
# training many times slower (benchmarks/busy_machine.json). OpenMP asks once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
