"""How often a progress bar is drawn."""

import sys

# a terminal redraws one line; in a log file each update is a line of its own
SECONDS_BETWEEN_UPDATES = 2 if sys.stderr.isatty() else 60
