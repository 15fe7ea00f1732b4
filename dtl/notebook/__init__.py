"""The laboratory notebook in experiments/: what the runs of its recipes came to, and the page that shows it."""
