"""Numbers as people read them. The terminal and the report use these functions, so one value looks the same in both."""


def percent(share: float, digits: int = 1) -> str:
    """Return a share in percent. Shares that are only close to 0% or 100% get a < or >."""
    step = 10.0**-digits
    if 0 < share < step / 200:
        return f"<{step:.{digits}f}%"
    if 1 - step / 200 <= share < 1:
        return f">{100 - step:.{digits}f}%"
    return f"{100 * share:.{digits}f}%"


def points(difference: float) -> str:
    """Return a difference of two shares in percentage points, with its sign."""
    rounded = round(100 * difference, 1)
    return f"{rounded:+.1f}".replace("-", "\N{MINUS SIGN}") if rounded else "0.0"


def seconds(value: float) -> str:
    """Return a time in seconds, in minutes from two minutes on, and in hours from two hours on."""
    if value < 120:
        return f"{value:.0f} s" if value >= 10 else f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def about(value: float) -> str:
    """Return an estimated time in seconds, minutes or hours, without digits that nobody knows."""
    if value < 120:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def rate(per_second: float) -> str:
    """Return a number per second; with two digits below 10, so that slow work has a rate above 0."""
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"


def counted(number: int, one: str, many: str) -> str:
    """Return a number with the right one of two words or phrases: `1 photo`, `2,000 photos`."""
    return f"{number:,} {one if number == 1 else many}"
