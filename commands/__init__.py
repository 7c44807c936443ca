"""Commands that people run by hand, as `python -m commands.NAME`: one module or package each.

Only tests import them. The Makefile has targets for most.
"""
