"""Numbers as people read them, with their units: one place for page, report, figures and terminal. Standard library only."""

import math
from dataclasses import dataclass

THIN_SPACE = "\u2009"
MINUS = "\u2212"
TIMES = "\N{MULTIPLICATION SIGN}"
NOTHING = "–"  # noqa: RUF001 - an en dash stands where there is no value

_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K"))
_SIZE_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How a metric is called and shown.

    Args:
        title: At the head of a column or an axis.
        short: Where there is little room.
        unit: After the number; empty for none.
        fraction: A share of 1, shown in percent.
        higher_is_better: Agreement and accuracy; costs are the other way round.
    """

    title: str
    short: str
    unit: str
    fraction: bool = False
    higher_is_better: bool = False


_MEASURES = {
    "kl": Measure(title="KL divergence", short="KL", unit="nats"),
    "mse": Measure(title="Normalised MSE", short="MSE", unit="of output variance"),
    "loss": Measure(title="Loss rise", short="loss rise", unit="nats"),
    "top1_agreement": Measure(
        title="Top-1 agreement", short="top-1 agreement", unit="%", fraction=True, higher_is_better=True
    ),
    "top1_accuracy": Measure(
        title="Top-1 accuracy", short="top-1 accuracy", unit="%", fraction=True, higher_is_better=True
    ),
    "float_top1_accuracy": Measure(
        title="Top-1 accuracy, float model",
        short="float top-1 accuracy",
        unit="%",
        fraction=True,
        higher_is_better=True,
    ),
}


def measure(metric: str) -> Measure:
    """How ``metric`` is shown; one not known here is shown by its own name, without a unit."""
    plain = metric.replace("_", " ")
    return _MEASURES.get(metric) or Measure(title=plain.capitalize(), short=plain, unit="")


def heading(metric: str) -> str:
    """A metric's title with its unit, at the head of a column of bare numbers: ``KL divergence (nats)``."""
    shown = measure(metric)
    return f"{shown.title} ({shown.unit})" if shown.unit and not shown.fraction else shown.title


def number(value: float | None, digits: int = 3) -> str:
    """``digits`` significant digits: ``0.00123``, ``12.3``, ``4.56e-7`` with a raised exponent."""
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("∞" if value > 0 else MINUS + "∞")
    if value == 0:
        return "0"
    mantissa, exponent = f"{abs(value):.{digits - 1}e}".split("e")
    power = int(exponent)
    sign = MINUS if value < 0 else ""
    if -4 <= power <= 3:
        return sign + f"{float(f'{mantissa}e{power}'):.{max(0, digits - 1 - power)}f}"
    return f"{sign}{mantissa}{TIMES}10{str(power).translate(_SUPERSCRIPTS)}"


def count(value: int | None) -> str:
    """A whole number in groups of three: ``4 652 008``."""
    return NOTHING if value is None else f"{value:,}".replace(",", THIN_SPACE).replace("-", MINUS)


def plural(number: int, noun: str) -> str:
    """A counted noun: ``1 tensor``, ``50 tensors``."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def size(bits: float | None) -> str:
    """A size given in bits, in decimal bytes: ``2.33 MB``; below one byte in bits."""
    if bits is None:
        return NOTHING
    if bits < 8:
        return f"{bits:g}{THIN_SPACE}bits"
    scale, unit = size_unit(bits)
    value = bits / 8 / scale
    text = f"{value:.0f}" if scale == 1 else number(value)
    return f"{text}{THIN_SPACE}{unit}"


def size_unit(bits: float) -> tuple[float, str]:
    """The decimal unit in which a size is best shown: (bytes in one of it, its name)."""
    number_of_bytes = bits / 8
    # 999.6 kB would be rounded to "1000 kB", hence the factor.
    return next(((s, u) for s, u in _SIZE_UNITS if number_of_bytes >= s * 0.9995), (1.0, "B"))


def operations(value: float | None) -> str:
    """A large count in thousands, three digits: ``98.6 G``."""
    if value is None:
        return NOTHING
    # 999.6 M would be rounded to "1000 M", hence the factor.
    scale, prefix = next(((s, p) for s, p in _PREFIXES if value >= s * 0.9995), (1.0, ""))
    return number(value / scale) + (f"{THIN_SPACE}{prefix}" if prefix else "")


def average_bits(value: float | None) -> str:
    """Bits per weight: ``3.98 bits``."""
    return NOTHING if value is None else f"{value:.2f}{THIN_SPACE}bits"


def percent(fraction: float | None) -> str:
    """A share of 1 in percent, two significant digits when small: ``0.3 %``, ``91.2 %``."""
    if fraction is None:
        return NOTHING
    value = 100 * fraction
    text = f"{value:.1f}" if abs(value) >= 10 or value == 0 else number(value, 2)
    return f"{text.removesuffix('.0').replace('-', MINUS)}{THIN_SPACE}%"


def ratio(numerator: float | None, denominator: float | None) -> str:
    """How many times smaller: ``8.01x``."""
    if not numerator or not denominator:
        return NOTHING
    return f"{numerator / denominator:.3g}{TIMES}"


def duration(seconds: float | None) -> str:
    """A time span: ``85 ms``, ``4.2 s``, ``1 min 13 s``, ``2 h 5 min``, ``3 d 4 h``."""
    if seconds is None:
        return NOTHING
    if seconds < 1:
        return f"{max(0.0, seconds) * 1000:.3g}{THIN_SPACE}ms"
    if seconds < 9.95:
        return f"{seconds:.1f}{THIN_SPACE}s"
    whole = round(seconds)
    for large, small, large_name, small_name in (
        (86400, 3600, "d", "h"),
        (3600, 60, "h", "min"),
        (60, 1, "min", "s"),
    ):
        if whole >= large:
            rest = whole % large // small
            tail = f" {rest}{THIN_SPACE}{small_name}" if rest else ""
            return f"{whole // large}{THIN_SPACE}{large_name}{tail}"
    return f"{whole}{THIN_SPACE}s"


def metric_value(value: float | None, metric: str) -> str:
    """A value of a metric with its unit: ``0.0123 nats``, ``91.2 %``."""
    if value is None:
        return NOTHING
    shown = measure(metric)
    if shown.fraction:
        return percent(value)
    return f"{number(value)}{THIN_SPACE}{shown.unit}".rstrip()


def metric_with_error(value: float | None, error: float | None, metric: str) -> str:
    """A value and its standard error, without the unit: ``0.0123 ± 0.0011``, for columns whose head names the unit."""
    if value is None:
        return NOTHING
    if measure(metric).fraction:
        text, spread = f"{100 * value:.1f}", f"{100 * (error or 0):.1f}"
    else:
        text, spread = number(value), number(error, 2)
    return text.replace("-", MINUS) if error is None else f"{text.replace('-', MINUS)} ± {spread}"


def shape(sizes: list[int] | tuple[int, ...]) -> str:
    """Tensor sizes: ``32 x 3 x 3 x 3``."""
    return f" {TIMES} ".join(str(n) for n in sizes) or "scalar"
