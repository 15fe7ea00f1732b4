"""What DTL adds to Hydra: thin classes, since Hydra accepts plugins here alone."""
