"""Reports on several runs: read, grouped by seed, compared with error bars, drawn, and put on one page."""
