"""`python -m dtl.notebook`, which `make notebook` calls: the page of the notebook anew, after a change of its texts."""

from dtl.base.display import shown
from dtl.notebook.records import write_page

if __name__ == "__main__":
    print(shown(write_page()))
