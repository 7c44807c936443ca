"""What stages, commands and the stand-in's making share. It imports none of them.

Modules at this level (files, params, paths, the way a program starts, …) compute no result: no
stage of dvc.yaml depends on them. What computes lies in a wing, and stages depend on it file by
file.
"""

import os

# Threads that wait for others sleep in place of spinning: beside one busy process spinning makes
# training many times slower (benchmarks/busy_machine.json). OpenMP asks once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
