"""Knows what can be wrong with an environment, a repository and a machine, and the command that mends each.

Nothing of what is checked is imported before its check: what is broken is said, not crashed into.
"""
