"""Words and pictures: reports, cards, comments and their templates. Computes nothing.

Of the other wings it imports `verdict` and `corpus`; no code reads what is written here.
"""
