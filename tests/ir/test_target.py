"""Targets: names, architectures, detection and JSON."""

from __future__ import annotations

import json

import pytest

from stof_onnx.ir.errors import InputError, MalformedNodeError
from stof_onnx.ir.target import DESCRIPTIONS, Target, parse_targets

TABLE = {
    "sm_80": ((8, 0), "sm_80", "minor"),
    "sm_86": ((8, 6), "sm_86", "minor"),
    "sm_89": ((8, 9), "sm_89", "minor"),
    "sm_90": ((9, 0), "sm_90a", "exact"),
    "sm_100": ((10, 0), "sm_100a", "exact"),
    "sm_103": ((10, 3), "sm_103", "minor"),
    "sm_120": ((12, 0), "sm_120", "minor"),
    "portable": ((8, 0), "compute_80", "newer"),
}


def names(targets: tuple[Target, ...]) -> list[str]:
    return [target.name for target in targets]


@pytest.mark.parametrize("name", TABLE)
def test_names_give_capability_architecture_and_match(name: str) -> None:
    target = Target.parse(name)
    assert (target.capability, target.architecture, target.match) == TABLE[name]
    assert target.is_portable == (name == "portable")


@pytest.mark.parametrize("name", TABLE)
def test_round_trips_through_json(name: str) -> None:
    target = Target.parse(name)
    assert Target.from_json(json.loads(json.dumps(target.to_json()))) == target


def test_prints_readably() -> None:
    assert str(Target.parse("sm_90")) == "sm_90"
    assert str(Target.parse("portable")) == "portable PTX for compute capability 8.0 and newer"


@pytest.mark.parametrize("name", ["sm_70", "70", "", "native", "sm_70,sm_90", "x,y", "blackwell"])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_targets([name])
    assert str(caught.value) == (
        f"unknown target '{name}'; wanted one of sm_80, sm_86, sm_89, sm_90, sm_100, sm_103, "
        "sm_120, portable, auto; run `stof-onnx env` to see this machine's GPU"
    )


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("SM_90", "did you mean 'sm_90'?"),
        ("sm90", "did you mean 'sm_90'?"),
        ("90", "did you mean 'sm_90'?"),
        ("9.0", "did you mean 'sm_90'?"),
        ("sm_90a", "did you mean 'sm_90'?"),
        ("compute_80", "did you mean 'sm_80'?"),
        ("12.0", "did you mean 'sm_120'?"),
        ("H100", "did you mean 'sm_90'?"),
        ("NVIDIA A100", "did you mean 'sm_80'?"),
        ("rtx 40", "did you mean 'sm_89'?"),
        ("Portable", "did you mean 'portable'?"),
        ("AUTO", "did you mean 'auto'?"),
        ("sm_90,sm_80", "repeat the option: --target sm_90 --target sm_80"),
        ("90, 80", "repeat the option: --target sm_90 --target sm_80"),
    ],
)
def test_a_name_in_other_words_is_refused_with_what_was_meant(name: str, suggestion: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_targets([name])
    assert str(caught.value).startswith(f"unknown target {name!r}; wanted one of sm_80, ")
    assert str(caught.value).endswith(f"auto; {suggestion}")


def test_one_text_is_no_list_of_targets() -> None:
    with pytest.raises(InputError) as caught:
        parse_targets("sm_90")
    assert str(caught.value) == "targets is the text 'sm_90'; wanted a list; write ['sm_90']"


def test_every_target_is_described() -> None:
    assert [*TABLE, "auto"] == list(DESCRIPTIONS)


def test_auto_alone_is_not_one_target() -> None:
    with pytest.raises(InputError, match="stands for all GPUs of a machine"):
        Target.parse("auto")


def test_targets_keep_their_order_and_appear_once() -> None:
    asked = ["sm_90", "sm_80", "sm_90", "portable", "sm_80"]
    assert names(parse_targets(asked)) == ["sm_90", "sm_80", "portable"]


def test_no_target_is_refused() -> None:
    with pytest.raises(InputError, match="no target"):
        parse_targets([])


@pytest.mark.parametrize(
    ("gpus", "wanted"),
    [
        ([], ["portable"]),
        ([(9, 0)], ["sm_90"]),
        ([(10, 3)], ["sm_103"]),
        ([(9, 0), (9, 0), (8, 0)], ["sm_90", "sm_80"]),
        ([(12, 1)], ["portable"]),
        ([(8, 7), (12, 1), (8, 9)], ["portable", "sm_89"]),
        ([(7, 5), (8, 6)], ["sm_86"]),
    ],
    ids=str,
)
def test_auto_is_the_machines_gpus(gpus: list[tuple[int, int]], wanted: list[str]) -> None:
    assert names(parse_targets(["auto"], lambda: gpus)) == wanted


def test_auto_without_a_detector_is_portable() -> None:
    assert names(parse_targets(["auto"])) == ["portable"]


def test_auto_merges_with_named_targets() -> None:
    asked = ["sm_80", "auto", "sm_100"]
    assert names(parse_targets(asked, lambda: [(9, 0), (8, 0)])) == ["sm_80", "sm_90", "sm_100"]


def test_auto_on_old_gpus_alone_is_refused() -> None:
    with pytest.raises(InputError, match=r"capability 7\.0, 7\.5; wanted 8\.0 or newer"):
        parse_targets(["auto"], lambda: [(7, 0), (7, 5)])


def test_gpus_are_looked_for_once_and_only_for_auto() -> None:
    calls: list[int] = []

    def detect() -> list[tuple[int, int]]:
        calls.append(1)
        return [(9, 0)]

    parse_targets(["sm_80"], detect)
    assert calls == []
    parse_targets(["auto", "sm_80", "auto"], detect)
    assert calls == [1]


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"name": "sm_70", "capability": [7, 0], "architecture": "sm_70"},
        {"name": ["sm_90"], "capability": [9, 0], "architecture": "sm_90a"},
        {"name": "sm_90", "capability": [9, 0], "architecture": "sm_90"},
        {"name": "sm_90", "capability": [8, 0], "architecture": "sm_90a"},
        {"name": "sm_90", "capability": [9, 0]},
        {"name": "auto", "capability": [9, 0], "architecture": "sm_90a"},
    ],
    ids=str,
)
def test_a_record_that_no_target_writes_is_malformed(record: dict[str, object]) -> None:
    with pytest.raises(MalformedNodeError, match="run `stof-onnx optimize` again"):
        Target.from_json(record)
