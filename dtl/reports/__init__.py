"""What several runs say together: read, grouped by seed, compared with error bars, drawn, and put on one page."""
