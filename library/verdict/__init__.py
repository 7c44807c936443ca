"""Metrics, statistics and votes. Loads no model and writes no page.

Of the sibling packages it imports only `corpus`, for splitting text into words.
"""
