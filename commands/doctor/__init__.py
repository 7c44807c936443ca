"""Checks of the environment, the repository and the machine, each problem with its fix.

Nothing is imported before its own check, so that a broken package is reported and does not crash
the doctor.
"""
