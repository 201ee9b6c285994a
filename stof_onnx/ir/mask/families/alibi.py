"""ALiBi: a bias that falls linearly with the distance, by head (Press et al., 2022).

    slope[h] * (k - q), slope[h] * -|q - k|, or slope[h] * k

The last adds the same number to all scores of a row as the first, which softmax ignores.
"""

from __future__ import annotations

from stof_onnx.ir.expr import Const, Expr, Load, Op, Poly, variables
from stof_onnx.ir.mask.families.forms import DISTANCES, KEY


def is_alibi(bias: Expr) -> bool:
    """Whether a bias is a slope of the head times a distance."""
    factors = _factors(bias)
    slopes = [f for f in factors if isinstance(f, Load) and variables(f) == {"h"}]
    lines = [f for f in factors if _is_line(f)]
    scales = [f for f in factors if isinstance(f, Const)]
    return (len(slopes), len(lines)) == (1, 1) and len(factors) == 2 + len(scales)


def _factors(expr: Expr) -> list[Expr]:
    if isinstance(expr, Op) and expr.name == "fmul":
        return [factor for arg in expr.args for factor in _factors(arg)]
    return [expr]


def _is_line(factor: Expr) -> bool:
    """A multiple of a distance, of its magnitude or of the key, plus what a row shares."""
    if not (isinstance(factor, Op) and factor.name == "float"):
        return False
    poly = Poly.of(factor.args[0])
    for atom in poly.atoms():
        if isinstance(atom, Op) and atom.name == "abs":
            inner = Poly.of(atom.args[0])
            is_distance = any(inner in (d, -d) for d in DISTANCES.values())
            rest = poly - Poly({(atom,): poly.terms.get((atom,), 0)})
            return is_distance and "k" not in variables(rest.expr())
    (key,) = KEY.atoms()
    slope = poly.terms.get((key,), 0)
    rest = poly - Poly({(key,): slope})
    return slope != 0 and not variables(rest.expr()) & {"k", "h"}
