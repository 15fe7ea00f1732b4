"""Cases of a whole sweep that fail, and how."""

FAILURES = ("raise", "exit", "nan", "memory", "hang", "kill")
N_CASES = 40


def failure_of(case: int) -> str | None:
    """Twelve of forty cases fail, two in each way."""
    return FAILURES[case // 3 % len(FAILURES)] if case % 3 == 1 and case < 36 else None
