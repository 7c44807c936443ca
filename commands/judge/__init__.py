"""A language model as a judge of two systems: what it is asked, and how the server is reached."""
