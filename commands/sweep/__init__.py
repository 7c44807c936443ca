"""Search parameters on validation loss: the space, its trials as DVC experiments, the study."""
