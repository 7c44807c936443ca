"""Language models: templates, loading, memory, training, answers and likelihoods. No statistics.

Of the other wings it imports `corpus` alone: a prompt is made of passages. Messages of libraries
that mean nothing to a user are left out from here on.
"""

import logging
import warnings

from transformers.utils.logging import disable_progress_bar

# an optional kernel of a package that is not needed
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# TRL's own use of a name that transformers will drop in its next version
warnings.filterwarnings(
    "ignore", message=r".*gradient_checkpointing.* is deprecated", category=FutureWarning
)
disable_progress_bar()  # of weights that are loaded in a second
