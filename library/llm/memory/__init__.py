"""Memory: the formula that predicts it, the plan that follows, what is measured, what is said."""
