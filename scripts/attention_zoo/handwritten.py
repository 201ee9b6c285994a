"""Hand-written PyTorch attention, one idiom a file, by both exporters."""

from __future__ import annotations

from collections.abc import Iterator

from attention_zoo.handwritten_form import Form, form_models
from attention_zoo.handwritten_mask_forms import BAND_FORMS, INPUT_FORMS, SPARSE_FORMS
from attention_zoo.handwritten_module_forms import decoy_forms, layout_forms, torch_forms
from attention_zoo.handwritten_score_forms import head_forms, score_forms
from attention_zoo.model import ZooModel


def forms() -> Iterator[Form]:
    """Yield all forms."""
    yield from BAND_FORMS
    yield from SPARSE_FORMS
    yield from INPUT_FORMS
    yield from score_forms()
    yield from head_forms()
    yield from torch_forms()
    yield from layout_forms()
    yield from decoy_forms()


MODELS: tuple[ZooModel, ...] = tuple(model for form in forms() for model in form_models(form))
