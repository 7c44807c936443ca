"""Search parameters by validation loss: the space, the study, and its trials as DVC experiments."""
