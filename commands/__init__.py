"""What people run by hand, as `python -m commands.NAME`: one module or package a command.

Imported by tests alone. The Makefile has targets for most.
"""
