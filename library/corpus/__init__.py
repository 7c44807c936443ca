"""Text: rows, defects, groups and splits, passages. No models, no statistics.

Imports no other package of the library.
"""
