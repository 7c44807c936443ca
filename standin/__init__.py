"""How the stand-in is made: the generator behind the sample data, and the embedded model.

It imports the library. A user's own rows and models never come here.
"""
