"""What can be wrong with an environment, a repository and a machine, and what mends each.

Nothing of what is checked is imported before its check: what is broken is said, not crashed into.
"""
