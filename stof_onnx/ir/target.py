"""The GPUs that kernels are compiled for.

A target is named as NVIDIA names real architectures (``sm_90``), or ``portable``: PTX for
compute capability 8.0, which the driver of any GPU from Ampere on finishes compiling when
the kernel is loaded. ``auto`` stands for the GPUs of the machine at hand and becomes one
target or several; finding those GPUs is left to the caller, as this package must not
touch CUDA.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from stof_onnx.ir.errors import InputError, MalformedNodeError

AUTO = "auto"
PORTABLE = "portable"

# The templates for sm_90 and sm_100 use instructions that only the architecture-specific
# instruction sets have (wgmma, tcgen05). Without the "a" CuTe compiles them to traps, and
# nothing says so before the kernel runs. The other targets take templates without them.
_ARCHITECTURES = {
    "sm_80": "sm_80",
    "sm_86": "sm_86",
    "sm_89": "sm_89",
    "sm_90": "sm_90a",
    "sm_100": "sm_100a",
    "sm_103": "sm_103",
    "sm_120": "sm_120",
    PORTABLE: "compute_80",
}

DESCRIPTIONS = {
    "sm_80": "A100",
    "sm_86": "A10, A40, RTX 30",
    "sm_89": "L4, L40, RTX 40",
    "sm_90": "H100, H200, GH200",
    "sm_100": "B200, GB200",
    "sm_103": "B300, GB300",
    "sm_120": "RTX 50, RTX PRO Blackwell",
    PORTABLE: "PTX for any of these, compiled by the driver when it is loaded",
    AUTO: "the GPUs of this machine; portable where there is none",
}
"""Every name that a user may give, with what it stands for."""

_PORTABLE_CAPABILITY = (8, 0)
_NUMBER = re.compile(r"(?:sm|compute)?[_-]?(\d+)\.?(\d)[af]?")

Match = Literal["exact", "minor", "newer"]
"""Which GPUs run a target's code, see :attr:`Target.match`."""

DetectGpus = Callable[[], Sequence[tuple[int, int]]]
"""Returns the compute capability (major, minor) of each GPU; empty without any."""


@dataclass(frozen=True)
class Target:
    """One GPU architecture to compile for.

    Attributes:
        name: as the user writes it: "sm_90" or "portable".
        capability: compute capability (major, minor); for "portable" the lowest that runs it.
        architecture: what NVRTC is given as ``--gpu-architecture``.
    """

    name: str
    capability: tuple[int, int]
    architecture: str

    @classmethod
    def parse(cls, name: str) -> Target:
        """The target of a name.

        Raises:
            InputError: no such target, or "auto", which may stand for several targets and
                is resolved by :func:`parse_targets`.
        """
        if name == AUTO:
            came = "target 'auto' stands for all GPUs of a machine"
            raise InputError(came, f"one of {', '.join(_ARCHITECTURES)}")
        architecture = _ARCHITECTURES.get(name)
        if architecture is None:
            raise InputError(
                f"unknown target {name!r}",
                f"one of {', '.join(DESCRIPTIONS)}",
                _suggestion(name) or "run `stof-onnx env` to see this machine's GPU",
            )
        if name == PORTABLE:
            return cls(name, _PORTABLE_CAPABILITY, architecture)
        digits = name.removeprefix("sm_")
        return cls(name, (int(digits[:-1]), int(digits[-1])), architecture)

    @property
    def is_portable(self) -> bool:
        """Whether kernels are kept as PTX, for the driver to compile when they are loaded."""
        return self.name == PORTABLE

    @property
    def match(self) -> Match:
        """Which GPUs run the code, by their compute capability.

        "exact": this capability only, as architecture-specific instructions demand it;
        "minor": the same major and this minor or a higher one, as cubins allow it; "newer":
        any from this one on, as the driver compiles PTX.
        """
        if self.is_portable:
            return "newer"
        return "exact" if self.architecture.endswith("a") else "minor"

    def __str__(self) -> str:
        """The target for a message or report."""
        if self.is_portable:
            major, minor = self.capability
            return f"portable PTX for compute capability {major}.{minor} and newer"
        return self.name

    def to_json(self) -> dict[str, Any]:
        """The target as values that JSON can write."""
        return {**asdict(self), "capability": list(self.capability)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Target:
        """The target that :meth:`to_json` wrote.

        Raises:
            MalformedNodeError: a record that no target of this version writes.
        """
        name = record.get("name")
        if not isinstance(name, str) or name not in _ARCHITECTURES:
            raise MalformedNodeError(
                f"a plan for target {name!r}",
                f"one of {', '.join(_ARCHITECTURES)}",
                "run `stof-onnx optimize` again",
            )
        target = cls.parse(name)
        if dict(record) != target.to_json():
            raise MalformedNodeError(
                f"a plan whose target is {dict(record)}",
                f"{target.to_json()}",
                "run `stof-onnx optimize` again",
            )
        return target


def _suggestion(name: str) -> str:
    """What somebody who wrote an unknown target may have meant; "" if nobody knows."""
    parts = [part for part in re.split(r"[,;\s]+", name) if part]
    if len(parts) > 1 and all(_meant(part) for part in parts):
        options = " ".join(f"--target {_meant(part)}" for part in parts)
        return f"repeat the option: {options}"
    meant = _meant(name)
    return f"did you mean {meant!r}?" if meant else ""


def _meant(name: str) -> str:
    text = name.strip().lower()
    if text in DESCRIPTIONS:
        return text
    number = _NUMBER.fullmatch(text)
    if number is not None:
        guess = f"sm_{number[1]}{number[2]}"
        return guess if guess in _ARCHITECTURES else ""
    gpu = text.removeprefix("nvidia").strip(" _-")
    for target in _ARCHITECTURES:
        if gpu in DESCRIPTIONS[target].lower().split(", "):
            return target
    return ""


def no_gpus() -> list[tuple[int, int]]:
    """The detector of a machine without a GPU."""
    return []


def parse_targets(names: Sequence[str], detect: DetectGpus = no_gpus) -> tuple[Target, ...]:
    """Resolves the values of ``--target``.

    Args:
        names: target names, or "auto" for the GPUs that ``detect`` finds.
        detect: called at most once, and only if "auto" is among the names.

    Returns:
        The targets in the order asked for, each once.

    Raises:
        InputError: an unknown name, no name at all, one text in place of a sequence of names,
            or "auto" on a machine whose GPUs are all older than compute capability 8.0.
    """
    if isinstance(names, str):
        raise InputError(f"targets is the text {names!r}", "a list", f"write [{names!r}]")
    if not names:
        raise InputError("no target", f"one of {', '.join(DESCRIPTIONS)}")
    found: tuple[Target, ...] | None = None
    targets: dict[Target, None] = {}
    for name in names:
        if name != AUTO:
            targets[Target.parse(name)] = None
            continue
        found = _targets_of(detect()) if found is None else found
        targets.update(dict.fromkeys(found))
    return tuple(targets)


def _targets_of(capabilities: Sequence[tuple[int, int]]) -> tuple[Target, ...]:
    """The targets of a machine's GPUs; portable PTX if it has none.

    A GPU from compute capability 8.0 on without a target of its own is served by portable
    PTX. Older GPUs are left out as long as there is another one.
    """
    usable = [capability for capability in capabilities if capability >= _PORTABLE_CAPABILITY]
    if capabilities and not usable:
        texts = ", ".join(f"{major}.{minor}" for major, minor in capabilities)
        raise InputError(
            f"target 'auto' found only GPUs of compute capability {texts}",
            "8.0 or newer",
            "name the GPU that the engine will run on, for example --target sm_90",
        )
    names = [f"sm_{major}{minor}" for major, minor in usable] or [PORTABLE]
    known = [name if name in _ARCHITECTURES else PORTABLE for name in names]
    return tuple(dict.fromkeys(map(Target.parse, known)))
