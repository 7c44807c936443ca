"""Metrics, statistics, votes. Knows numbers, knows no model, writes no page.

Of the other wings it imports `corpus` alone, for what a word is.
"""
