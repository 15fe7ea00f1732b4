"""`python -m dtl.notebook`, which `make notebook` calls: rewrites the page of the notebook from its files."""

from dtl.base.display import shown
from dtl.notebook.records import write_page

if __name__ == "__main__":
    print(shown(write_page()))
