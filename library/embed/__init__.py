"""Embedding models: loading, encoding, what they find, training. Knows models, no statistics.

Imports library.corpus, and of library.llm what any model needs: devices and checkpoints. Messages
of libraries that mean nothing to a user are left out from here on.
"""

import logging

# an optional kernel of a package that is not needed
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# twenty lines for each evaluation and each save
logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
logging.getLogger("transformers").setLevel(logging.WARNING)
