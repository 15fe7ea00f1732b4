"""`python -m dtl.notebook`, which `make notebook` calls: rewrites the page of the notebook from its files."""

import sys

from dtl.base.display import shown
from dtl.notebook.records import write_page

if __name__ == "__main__":
    print(__doc__ if sys.argv[1:] else shown(write_page()))  # --help, and any other word
