"""Embedding models: loading, encoding, what they find, training. Knows models, no statistics.

Imports library.corpus, and of library.llm what any model needs: devices and checkpoints.
"""
