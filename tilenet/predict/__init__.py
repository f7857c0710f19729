"""Networks as predictors: on a CPU or a GPU, by the fast paths or layer by layer, in how much memory."""
