"""Rows, defects, groups and splits, passages. Knows text, knows no model and no statistics.

Imports no other wing.
"""
