"""The laboratory notebook in experiments/: records of the runs of its recipes, and the page that shows them."""
