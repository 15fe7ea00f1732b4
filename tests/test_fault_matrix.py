"""Every promise about a fault has a test, and the page says which."""

import fault_matrix


def test_each_fault_has_a_test_and_each_marker_a_fault():
    known = [name for faults in fault_matrix.FAULTS.values() for name in faults]
    assert len(known) == len(set(known)) >= 44
    named = fault_matrix.named_faults()
    assert set(known) - set(named) == set(), "faults without a test"
    assert set(named) - set(known) == set(), "markers without a fault"


def test_the_page_is_up_to_date():
    assert fault_matrix.PAGE.read_text(encoding="utf-8") == fault_matrix.page(), "run: python tests/fault_matrix.py"
