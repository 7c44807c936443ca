"""Reports, cards, comments, charts and their templates. Computes no metrics.

Of the sibling packages it imports `verdict` and `corpus`; no code reads what is written here.
"""
