"""How the stand-in is made: the generator of the sample data, and the built-in model.

It imports the library. It is never used for a user's own rows and models.
"""
