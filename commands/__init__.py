"""What people run by hand, one module or package a command; the Makefile names them all.

Imported by nobody, and by no stage.
"""
