"""A language model as a judge of two systems: the prompt, the server and the votes."""
