"""Fail where dvc.lock is not that of the code, the parameters and the data it stands beside; no
data need be there.
"""

import sys

from library.repository.lock import find_stale

stale = find_stale()
for stage, reasons in (stale or {}).items():
    print(f"{stage}: {', '.join(reasons)}")
sys.exit(
    "dvc.lock is not current: run `dvc repro`, and commit dvc.lock and metrics/" if stale else 0
)
