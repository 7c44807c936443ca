"""Embedding models. Knows them alone.

Imports no other wing.
"""
