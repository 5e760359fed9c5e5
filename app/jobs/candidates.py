"""Which candidates a job may offer its units, checked: pure, no database, no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.errors import InvalidRequest
from app.jobs.offer import MENUS, SHORT, unit_menu
from workers.contracts import MAX_BITS, MIN_BITS, Candidate, ModelDescription, Scheme
from workers.menus import Target, offered_bits

DEFAULT_CANDIDATES = (2, 3, 4, 5, 6, 8)
DEFAULT_SCHEME = "channel-asymmetric"
TARGETS = tuple(t.value for t in Target)
_ANY_SCHEME = Scheme.parse(DEFAULT_SCHEME)


@dataclass(frozen=True, kw_only=True)
class Offered:
    """What weights may become.

    Args:
        candidates: Bit-widths, ascending.
        schemes: Quantizers, in their canonical form; none where the target's menu tells them.
        target: What is to run the model, if that decides.
        menu: How much of the target's menu is offered.
        left_in_float: Units that the target does not quantize, in execution order.
    """

    candidates: list[int]
    schemes: list[str]
    target: str | None = None
    menu: str = SHORT
    left_in_float: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As a job's request keeps it."""
        scheme = self.schemes[0] if self.schemes else None
        kept: dict[str, Any] = {"candidates": self.candidates, "scheme": scheme, "schemes": self.schemes}
        if self.target is None:
            return kept
        return kept | {
            "target": self.target,
            "menu": self.menu,
            "left_in_float": list(self.left_in_float),
        }


def check_target(
    description: ModelDescription, target: str, menu: str, bits: Sequence[int] | None, exclude: Sequence[str]
) -> Offered:
    """What a target can store of a model.

    Args:
        description: The model.
        target: One of `workers.menus.Target`.
        menu: One of `MENUS`.
        bits: Bit-widths wanted; ``None``: the usual ones, as far as the target stores them.
        exclude: Units that stay in float anyway.

    Raises:
        InvalidRequest: No such target or menu, a bit-width that the target does not store, or a model of which it
            quantizes nothing.
        RequestRefused: A bit-width outside 2 to 16.
    """
    if target not in TARGETS:
        raise InvalidRequest(f"unknown target {target!r}", "target", target, list(TARGETS))
    if menu not in MENUS:
        raise InvalidRequest(f"unknown menu {menu!r}", "menu", menu, list(MENUS))
    stored = offered_bits(Target(target))
    if bits is None:
        bits = [b for b in DEFAULT_CANDIDATES if b in stored]
    candidates = check_candidates(bits)
    missing = [b for b in candidates if b not in stored]
    if missing:
        raise InvalidRequest(
            f"target {target!r} stores no weights of {missing[0]} bits",
            "candidates",
            missing[0],
            list(stored),
        )
    left = tuple(u.name for u in description.units if not unit_menu(u, target, menu, candidates))
    if len({*left, *exclude}) >= len(description.units):
        raise InvalidRequest(
            f"target {target!r} leaves every unit that is not excluded in float",
            "target",
            target,
            [t for t in TARGETS if t != target],
        )
    return Offered(candidates=candidates, schemes=[], target=target, menu=menu, left_in_float=left)


def check_left_in_float(
    left: Sequence[str], target: str | None, pins: Mapping[str, int], ties: Sequence[Sequence[str]]
) -> None:
    """Pins and ties against what the target leaves in float.

    Raises:
        InvalidRequest: A pin or a tie of such a unit.
    """
    named = {f"pins.{name}": name for name in pins}
    named |= {f"ties.{i}.{j}": name for i, group in enumerate(ties) for j, name in enumerate(group)}
    for field, name in named.items():
        if name in left:
            raise InvalidRequest(
                f"target {target!r} leaves unit {name!r} in float",
                field,
                name,
                "units that the target quantizes",
            )


def check_schemes_or_target(
    scheme: str | None, schemes: Sequence[str], target: str | None, menu: str | None
) -> None:
    """Either schemes or a target say which quantizers are offered; a menu belongs to a target.

    Raises:
        InvalidRequest: Both, or a menu alone.
    """
    if target is not None and (scheme is not None or schemes):
        field = "scheme" if scheme is not None else "schemes"
        raise InvalidRequest(
            f"target {target!r} and {field} are given; a target decides which schemes there are",
            "target",
            target,
            "either a target or schemes",
        )
    if target is None and menu is not None:
        raise InvalidRequest(
            "a menu is given without a target", "menu", menu, "a menu together with a target"
        )


def check_candidates(bits: Sequence[int]) -> list[int]:
    """Bit-widths, ascending.

    Raises:
        InvalidRequest: None, or the same one twice.
        RequestRefused: A bit-width outside 2 to 16.
    """
    if not bits:
        raise InvalidRequest(
            "no candidate bit-width is given",
            "candidates",
            [],
            f"one or more whole numbers from {MIN_BITS} to {MAX_BITS}",
        )
    twice = sorted({b for b in bits if bits.count(b) > 1})
    if twice:
        raise InvalidRequest(
            f"bit-width {twice[0]} is given twice", "candidates", list(bits), "each bit-width once"
        )
    return sorted(Candidate(bits=b, scheme=_ANY_SCHEME).bits for b in bits)


def check_activations(bits: Sequence[int]) -> list[int]:
    """Bit-widths of activations, ascending; none leaves them in float.

    Raises:
        InvalidRequest: The same one twice.
        RequestRefused: A bit-width outside 2 to 16.
    """
    twice = sorted({b for b in bits if bits.count(b) > 1})
    if twice:
        raise InvalidRequest(
            f"activation bit-width {twice[0]} is given twice",
            "activation_candidates",
            list(bits),
            "each bit-width once",
        )
    for width in bits:
        Candidate(bits=MAX_BITS, scheme=_ANY_SCHEME, activation_bits=width)
    return sorted(bits)


def check_schemes(scheme: str | None, schemes: Sequence[str]) -> list[str]:
    """Quantizer schemes in their canonical form, as many as are asked for.

    Raises:
        InvalidRequest: Both one and several, or the same one twice.
        RequestRefused: An unknown scheme.
    """
    if scheme is not None and schemes:
        raise InvalidRequest(
            "both scheme and schemes are given", "schemes", list(schemes), "either scheme or schemes"
        )
    parsed = [str(Scheme.parse(text)) for text in schemes or [scheme or DEFAULT_SCHEME]]
    twice = sorted({text for text in parsed if parsed.count(text) > 1})
    if twice:
        raise InvalidRequest(
            f"scheme {twice[0]!r} is given twice", "schemes", list(schemes), "each scheme once"
        )
    return parsed
