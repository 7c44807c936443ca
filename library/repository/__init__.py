"""Git and DVC: one client for both, the lock, commits and experiments. Knows no model.

Imports no other wing.
"""
