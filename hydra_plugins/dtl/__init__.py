"""DTL's Hydra plugins: thin classes, since Hydra only discovers plugins in this package."""
