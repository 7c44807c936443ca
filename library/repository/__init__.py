"""Git and DVC: one client for both, the lock, commits and experiments. No models.

Imports no other package of the library.
"""
