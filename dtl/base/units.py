"""Counts, sizes and durations as text for the screen, never for files."""


def in_units(count: float) -> str:
    """A count such as `1.2 M`."""
    for limit, scale, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if count >= limit:
            return f"{count / scale:.1f} {unit}"
    return f"{count:,.0f}"


def number_of(things: str, count: int) -> str:
    """A number of countable things, named in the plural: `1 trial`, `1,200 trials` for `trials`."""
    return counted(things, f"{count:,}")


def counted(things: str, digits: str) -> str:
    """An amount of things by its digits: `1 epoch`, `1.1 epochs` for `epochs`."""
    return f"{digits} {things.removesuffix('s') if digits == '1' else things}"


def in_digits(value: float) -> str:
    """Two digits of a number, or all that are before the point: `0.088`, `6.3`, `1,234`."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def in_unit(value: float | None, unit: str) -> str:
    """A result of a benchmark: `955 k tokens/s` over two lines, `0.03 %`, `1.2 s`, `3.1 ms`; `-` for none."""
    if value is None:
        return "-"
    if unit == "%":
        return f"{in_percent(value)} %"
    if unit == "s":
        return f"{value:.2f} s" if value >= 0.1 else f"{1000 * value:.2g} ms"
    for limit, scale, prefix in ((1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= limit:
            return f"{value / scale:.3g} {prefix}\n{unit}"
    number = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return f"{number} {unit}" if len(unit) <= 2 else f"{number}\n{unit}"


def in_percent(fraction: float) -> str:
    """A fraction in percent, without the sign: two digits below 10 %, no decimals above."""
    if 0 < fraction < 0.0001:
        return "< 0.01"
    return f"{100 * fraction:.2g}" if fraction < 0.1 else f"{100 * fraction:.0f}"


def in_epochs(count: float) -> str:
    """A number of epochs: `300 epochs`, `2.96 epochs`, `0.0012 epochs`."""
    digits = f"{count:.2f}".rstrip("0").rstrip(".") if count >= 0.01 or not count else f"{count:.2g}"
    return counted("epochs", digits)


def in_bits(count: int) -> str:
    """A number of bits: `72 bit`, `5.2 Mbit`."""
    text = in_units(count)
    return f"{text}{'bit' if text[-1].isalpha() else ' bit'}"


def in_bytes(n: float) -> str:
    """A size such as `812 B`, `43 kB`, `1.2 GB`, in powers of a thousand as disks are sold."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n >= limit:
            return f"{n / limit:.{0 if n >= 10 * limit else 1}f} {unit}"
    return f"{n:.0f} B"


def in_gb(n_bytes: float) -> str:
    """Disk space in one unit, comparable with a limit: `0.7 GB`."""
    return "under 0.1 GB" if 0 < n_bytes < 0.05e9 else f"{n_bytes / 1e9:.1f} GB"


def in_gib(n_bytes: float) -> str:
    """Memory in GiB, the unit that GPUs and memory modules are sold in; below 0.1 GiB in MiB."""
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 0.1 * 2**30 else in_mib(n_bytes)


def in_mib(n_bytes: float, thousands: str = "") -> str:
    """The size of a file in MiB, a small one as `in_bytes`; `thousands` is the thousands separator."""
    n_mib = n_bytes / 2**20
    return f"{n_mib:{thousands}.1f} MiB" if n_mib >= 0.1 else in_bytes(n_bytes)


def in_time(seconds: float) -> str:
    """Seconds as `45 s`, `12:05` or `3:20:00`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{in_minutes(rest):0>5}" if hours else in_minutes(rest)


def in_seconds(seconds: float) -> str:
    """Seconds of one piece of work: `4 ms`, `0.52 s`, `1:20`."""
    if seconds >= 60:
        return in_time(seconds)
    return f"{seconds:.3g} s" if seconds >= 0.1 else f"{1000 * seconds:.2g} ms"


def in_minutes(seconds: float) -> str:
    """Seconds as `0:45`, `12:05` or `200:00`."""
    return f"{round(seconds) // 60}:{round(seconds) % 60:02}"


def in_age(seconds: float) -> str:
    """An age such as `40 s`, `12 min`, `5 h`, `3 days`."""
    for limit, scale, unit in ((2 * 86_400, 86_400, "days"), (2 * 3_600, 3_600, "h"), (120, 60, "min")):
        if seconds >= limit:
            return f"{seconds / scale:.0f} {unit}"
    return f"{seconds:.0f} s"
