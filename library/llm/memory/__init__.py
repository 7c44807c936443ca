"""Memory: predict what a model needs, plan batch sizes, measure, and say what would fit."""
