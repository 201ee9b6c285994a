"""Lower a model and say what that did: what ``optimize`` calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from onnx import ModelProto

from stof_onnx.accuracy.inputs import generate_feeds
from stof_onnx.ir.errors import InputError
from stof_onnx.precision.autocast import convert_by_autocast
from stof_onnx.precision.convert import Conversion, convert
from stof_onnx.precision.effect import measure
from stof_onnx.precision.rounded import float32_twin
from stof_onnx.precision.target import PRECISIONS, Precision, PrecisionName
from stof_onnx.progress import Progress
from stof_onnx.report.records import PrecisionEffect, PrecisionReport

# From here on a user should look at what the model is for.
_NOTABLE = 0.05


@dataclass(frozen=True)
class Lowered:
    """A lowered model and its report.

    Attributes:
        model: not optimized yet.
        report: without effects until :meth:`measured`.
        precision: what it was lowered to.
    """

    model: ModelProto
    report: PrecisionReport
    precision: Precision

    @property
    def notes(self) -> tuple[str, ...]:
        """The report in sentences."""
        report = self.report
        kept = ", ".join(f"{reason}: {count}" for reason, count in sorted(report.kept.items()))
        notes = [
            f"{report.lowered} operators were lowered to {report.precision} by {report.tool},"
            f" {sum(report.kept.values())} stay in float32 ({kept or 'none'})"
        ]
        if not report.effects:
            notes.append(f"what {report.precision} changes was not measured")
        # The report's table has the others.
        notes += [
            _effect_text(effect, report.precision)
            for effect in report.effects
            if effect.rel_l2 > _NOTABLE
        ]
        return tuple(notes)

    def twin(self, model: ModelProto) -> ModelProto:
        """A float32 copy of the lowered model, or of what was made of it."""
        return float32_twin(model, self.precision)

    def measured(
        self,
        original: ModelProto,
        optimized: ModelProto,
        input_shapes: Mapping[str, Sequence[int]] | None,
        progress: Progress,
    ) -> Lowered:
        """The same with what the precision changes.

        Args:
            original: before it was lowered.
            optimized: what became of it.
            input_shapes: shapes to run with, by input name.
            progress: is told how far the work is.

        Raises:
            InputError: ONNX Runtime can't run one of the models.
            CheckFailedError: an output overflows.
        """
        effects = measure(original, optimized, self.precision, input_shapes, progress)
        return replace(self, report=replace(self.report, effects=effects))


def lower(
    model: ModelProto,
    name: PrecisionName,
    *,
    autocast: bool,
    input_shapes: Mapping[str, Sequence[int]] | None,
    progress: Progress,
) -> Lowered:
    """Lower a float32 model.

    Args:
        model: not changed.
        name: what to lower it to.
        autocast: whether NVIDIA ModelOpt's AutoCast chooses the operators.
        input_shapes: shapes for AutoCast to run the model with, by input name.
        progress: is told how far the work is.

    Raises:
        InputError: the model can't be lowered.
        MissingDependencyError: ModelOpt isn't installed.
    """
    if name not in PRECISIONS:
        raise InputError(f"precision {name!r}", f"one of {list(PRECISIONS)}")
    precision = PRECISIONS[name]
    with progress.task(f"Lowering to {name}", None):
        done = _convert(model, precision, autocast, input_shapes)
    tool = "AutoCast" if autocast else "ONNX Runtime's float16 tool"
    report = PrecisionReport(name, tool, done.lowered, dict(done.kept))
    return Lowered(done.model, report, precision)


def _convert(
    model: ModelProto,
    precision: Precision,
    autocast: bool,
    input_shapes: Mapping[str, Sequence[int]] | None,
) -> Conversion:
    if not autocast:
        return convert(model, precision)
    feed = generate_feeds(model, input_shapes)[0]
    return convert_by_autocast(model, precision, feed.arrays)


def _effect_text(effect: PrecisionEffect, precision: str) -> str:
    return (
        f"{precision} changes output {effect.output!r} by {effect.rel_l2:.1e} in relative L2"
        f" distance ({effect.max_abs:.1e} in an element), on {effect.feed or 'its own shapes'}:"
        " look at what the model is for"
    )
