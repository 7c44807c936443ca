"""Embedding models: loading, encoding, ranking, training. No statistics.

Imports library.corpus, and from library.llm what every model needs: devices and checkpoints.
Silences messages of libraries that mean nothing to a user.
"""

import logging

# an optional kernel of a package that is not needed
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# twenty lines for each evaluation and each save
logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
logging.getLogger("transformers").setLevel(logging.WARNING)
