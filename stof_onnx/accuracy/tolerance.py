"""How far two outputs are apart, and how far they may be.

The original and the expanded model compute the same function in another order, so
they differ by rounding. The default tolerances are several times what ONNX Runtime's
own optimizer changes in the same models, and a small fraction of what one wrong
element of a mask changes:

- float32: two-layer models differ from themselves by up to 1.4e-5 of an output's root
  mean square in the worst element, and by 1.3e-6 in relative L2 distance. An element
  may be off by 1e-4 of the root mean square, or of itself, and a whole output by 2e-5
  in relative L2 distance: deeper models need some of that, and a wrong key in a row
  of 127 changes the row by 1e-2.
- float16 (also where only the inside of the model computes in it): every operator
  rounds, and the same models differ by 2e-3 and 2.2e-4. Elements may be off by 16
  steps of 2**-10 and whole outputs by 4: the second limit finds small errors
  everywhere, which the first would let pass.
- float64: as float32, times 1e-5.
- integers and booleans have to be equal.

Some models amplify rounding: a mask that adds -10000 leaves a row that sees no key
with scores that are rounded to 1e-3. Where an output fails, the original is run a
second time without ONNX Runtime's optimizer; up to four times the difference that this
makes is allowed, but never more than ten times the usual tolerance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from stof_onnx.accuracy.result import OutputResult, Tolerance
from stof_onnx.accuracy.session import Arrays, quiet_polygraphy

Array = np.ndarray[Any, Any]

_HALF_STEP = 2.0**-10
_USUAL = {
    "float64": Tolerance(1e-9, 1e-9, 2e-10),
    "float32": Tolerance(1e-4, 1e-4, 2e-5),
    "float16": Tolerance(16 * _HALF_STEP, 16 * _HALF_STEP, 4 * _HALF_STEP),
}
# Numbers from here on are fills of masks, not values; they'd hide the size of the others.
_FILLS = {"float64": 1e30, "float32": 1e30, "float16": 6e4}
# Outputs smaller than this are what is left of a cancellation between larger numbers.
_SMALLEST_SCALE = 1e-2
_NOISE_FACTOR = 4.0
_MOST_WIDENING = 10.0


@dataclass(frozen=True)
class Rules:
    """What a user, or the precision of a model, says about tolerances.

    Attributes:
        atol: absolute tolerance given by the user.
        rtol: relative tolerance given by the user.
        half: whether the model computes in float16.
    """

    atol: float | None = None
    rtol: float | None = None
    half: bool = False

    def tolerance(self, expected: Array) -> Tolerance:
        """The tolerance for one output, from the original's values."""
        name = expected.dtype.name
        if name not in _USUAL:
            return Tolerance(0.0, 0.0)
        usual = _USUAL["float16" if self.half else name]
        scaled = _scaled(usual, _root_mean_square(expected, _FILLS[name]))
        if self.atol is None and self.rtol is None:
            return scaled
        # The user's word: elements alone decide.
        return Tolerance(
            scaled.atol if self.atol is None else self.atol,
            scaled.rtol if self.rtol is None else self.rtol,
        )

    @property
    def may_widen(self) -> bool:
        """Whether the original's own rounding may widen a tolerance."""
        return self.atol is None and self.rtol is None


def judge(
    name: str, expected: Array, actual: Array, rules: Rules, rerun: Callable[[], Arrays]
) -> OutputResult:
    """Compare one output with the original's.

    Args:
        name: of the output.
        expected: the original's values.
        actual: the optimized model's values.
        rules: where the tolerance comes from.
        rerun: outputs of the original computed another way; called only if needed.
    """
    tolerance = rules.tolerance(expected)
    wrong = _wrong_kind(expected, actual)
    if wrong:
        return OutputResult(
            name, expected.dtype.name, np.inf, np.inf, tolerance, passed=False, reason=wrong
        )
    max_abs, rel_l2 = distance(expected, actual)
    passed = _within(name, expected, actual, tolerance, rel_l2)
    reason = ""
    if not passed and rules.may_widen and tolerance.rel_l2 is not None:
        noise_abs, noise_l2 = distance(expected, rerun()[name])
        widened = _widen(tolerance, noise_abs, noise_l2)
        passed = _within(name, expected, actual, widened, rel_l2)
        if passed:
            tolerance = widened
            reason = f"the original itself varies by {noise_abs:.2g} with its rounding"
    return OutputResult(name, expected.dtype.name, max_abs, rel_l2, tolerance, passed, reason)


def distance(expected: Array, actual: Array) -> tuple[float, float]:
    """Largest absolute difference and relative L2 distance of two arrays of one shape.

    NaN in both, or the same infinity in both, is no difference; NaN or an infinity in
    one of them alone is an infinite one.
    """
    first, second = (
        _blank(expected, actual, array).astype(np.float64) for array in (expected, actual)
    )
    if first.size == 0:
        return 0.0, 0.0
    with np.errstate(all="ignore"):
        difference = np.abs(second - first)
        if not np.isfinite(difference).all():
            return float("inf"), float("inf")
        norm = float(np.linalg.norm(first))
        error = float(np.linalg.norm(difference))
    if error == 0.0:
        return 0.0, 0.0
    return float(difference.max()), error / norm if norm else float("inf")


def _wrong_kind(expected: Array, actual: Array) -> str:
    if expected.dtype != actual.dtype:
        return f"type {actual.dtype.name}, wanted {expected.dtype.name}"
    if expected.shape != actual.shape:
        return f"shape {list(actual.shape)}, wanted {list(expected.shape)}"
    return ""


def _blank(expected: Array, actual: Array, array: Array) -> Array:
    """``array`` with 0 where both arrays hold NaN, or the same infinity."""
    if expected.dtype.kind != "f":
        return array
    same = (np.isnan(expected) & np.isnan(actual)) | (np.isinf(expected) & (expected == actual))
    return np.where(same, array.dtype.type(0), array)


def _within(name: str, expected: Array, actual: Array, tolerance: Tolerance, rel_l2: float) -> bool:
    """Polygraphy's verdict on the elements, and ours on the whole."""
    from polygraphy import comparator

    if expected.size == 0:
        return True
    if tolerance.rel_l2 is not None and rel_l2 > tolerance.rel_l2:
        return False
    # Newer Polygraphy has the class, and warns about the function.
    simple = getattr(comparator, "SimpleCompareFunc", None) or comparator.CompareFunc.simple
    compare = simple(atol=tolerance.atol, rtol=tolerance.rtol, check_error_stat="elemwise")
    # Polygraphy's relative tolerance refers to the second of the two.
    pair = [
        comparator.IterationResult({name: _blank(expected, actual, array)}, runner_name=runner)
        for array, runner in ((actual, "optimized"), (expected, "original"))
    ]
    with quiet_polygraphy(), np.errstate(all="ignore"):
        return bool(compare(*pair)[name])


def _scaled(usual: Tolerance, size: float) -> Tolerance:
    """A tolerance for an output of the given root mean square."""
    if size >= _SMALLEST_SCALE:
        return dataclasses.replace(usual, atol=usual.atol * size)
    assert usual.rel_l2 is not None
    return dataclasses.replace(
        usual,
        atol=usual.atol * _SMALLEST_SCALE,
        rel_l2=usual.rel_l2 * _SMALLEST_SCALE / size if size else float("inf"),
    )


def _root_mean_square(expected: Array, fill: float) -> float:
    """The size of an output's values; NaN, infinities and fills are none."""
    magnitudes = np.abs(expected[np.isfinite(expected)].astype(np.float64))
    values = magnitudes[magnitudes < fill]
    return float(np.sqrt(np.mean(values**2))) if values.size else 1.0


def _widen(tolerance: Tolerance, noise_abs: float, noise_l2: float) -> Tolerance:
    assert tolerance.rel_l2 is not None
    return Tolerance(
        _between(tolerance.atol, noise_abs),
        tolerance.rtol,
        _between(tolerance.rel_l2, noise_l2),
    )


def _between(usual: float, noise: float) -> float:
    return min(max(usual, _NOISE_FACTOR * noise), _MOST_WIDENING * usual)
