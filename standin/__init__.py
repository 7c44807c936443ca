"""How the stand-in is made: the generator behind the sample data, and the embedded model.

It imports the library; of it, the stage `sample`, `make new` and the tests import the generator.
"""
