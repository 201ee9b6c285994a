"""Reading and writing model files: what is refused, in which words, and what stays intact."""

import os
import stat
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import _get_all_tensors, load_external_data_for_tensor

from stof_onnx.ir.errors import InputError, OutputError
from stof_onnx.model_io import check_output_path, load_model, outline, save_model, saving

MODELS = Path(__file__).parent / "models"
WEIGHTS = np.arange(2048, dtype=np.float32).reshape(32, 64)


def make_model(*, opset: int = 18, domain: str = "", op_type: str = "MatMul") -> ModelProto:
    node = helper.make_node(op_type, ["x", "weights"], ["y"], name="node", domain=domain)
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 64])],
        [numpy_helper.from_array(WEIGHTS, "weights")],
    )
    imports = [helper.make_opsetid("", opset)]
    if domain:
        imports.append(helper.make_opsetid(domain, 1))
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def external(folder: Path) -> Path:
    save_model(make_model(), folder / "model.onnx", embed_limit=0)
    return folder / "model.onnx"


def weights_of(model: ModelProto) -> np.ndarray:
    return numpy_helper.to_array(model.graph.initializer[0])


# ---------------------------------------------------------------------------------- loading


def _truncated(path: Path) -> None:
    content = (MODELS / "bert_sdpa_dynamo.onnx").read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _without_graph(path: Path) -> None:
    path.write_bytes(
        ModelProto(ir_version=8, opset_import=make_model().opset_import).SerializeToString()
    )


def _without_opset(path: Path) -> None:
    model = make_model()
    del model.opset_import[:]
    path.write_bytes(model.SerializeToString())


def _undefined_tensor(path: Path) -> None:
    model = make_model()
    model.graph.node[0].input[0] = "nowhere"
    path.write_bytes(model.SerializeToString())


def _no_data(path: Path) -> None:
    external(path.parent)
    (path.parent / "model.onnx.data").unlink()


def _short_data(path: Path) -> None:
    external(path.parent)
    data = path.parent / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1])


def _linked_data(path: Path) -> None:
    external(path.parent)
    data = path.parent / "model.onnx.data"
    data.rename(path.parent / "blob")
    data.symlink_to("blob")


def _outside_data(path: Path) -> None:
    folder = path.parent / "inner"
    folder.mkdir()
    external(path.parent)
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = "../model.onnx.data"
    path.unlink()
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    path.symlink_to(folder / "model.onnx")


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "does not exist"),
    "directory": (lambda path: path.mkdir(), "is a directory"),
    "empty": (lambda path: path.touch(), "is empty"),
    "random bytes": (
        lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
        "is not an ONNX file",
    ),
    "text": (lambda path: path.write_text("hello, world\n" * 20), "is not an ONNX file"),
    "JSON": (lambda path: path.write_text('{"ir_version": 8}'), "is not an ONNX file"),
    "LFS pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "git lfs pull",
    ),
    "truncated": (_truncated, "is truncated or damaged"),
    "no graph": (_without_graph, "holds no graph"),
    "no opset": (_without_opset, "imports no opset"),
    "old opset": (
        lambda path: path.write_bytes(make_model(opset=12).SerializeToString()),
        "uses opset 12; wanted a version in 13..24",
    ),
    "new opset": (
        lambda path: path.write_bytes(make_model(opset=25).SerializeToString()),
        "uses opset 25; wanted a version in 13..24",
    ),
    "undefined tensor": (_undefined_tensor, "is not a valid ONNX model"),
    "external data missing": (_no_data, "of tensor 'weights' does not exist"),
    "external data too short": (_short_data, "has 8191 bytes, too short for tensor 'weights'"),
    "external data linked": (_linked_data, "is a symbolic link"),
}


@pytest.mark.parametrize(("make", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_file_is_refused_in_one_line(tmp_path, make, message):
    path = tmp_path / "model.onnx"
    make(path)
    before = files(tmp_path)
    with pytest.raises(InputError) as caught:
        load_model(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert files(tmp_path) == before


def test_external_data_outside_of_the_folder_is_refused(tmp_path):
    path = tmp_path / "model.onnx"
    _outside_data(path)
    with pytest.raises(InputError):
        load_model(tmp_path / "inner" / "model.onnx")


@pytest.mark.parametrize("name", ["x" * 300, "\udcff.onnx"])
def test_names_that_cannot_be_opened_are_refused(tmp_path, name):
    if len(name) < 100:
        (tmp_path / name).write_bytes(make_model().SerializeToString())
    with pytest.raises(InputError, match=r"File name too long|not UTF-8 .* set LC_ALL=C.UTF-8"):
        load_model(tmp_path / name)


def test_unreadable_file_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    save_model(make_model(), path)

    def refuse(self, mode):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match="Permission denied"):
        load_model(path)


def test_a_pipe_is_read(tmp_path):
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as stream:
        stream.write(make_model().SerializeToString())
    with os.fdopen(reader):
        assert load_model(f"/dev/fd/{reader}") == make_model()


def test_a_file_of_more_than_2_gib_is_refused(tmp_path):
    path = tmp_path / "model.onnx"
    with path.open("wb") as stream:
        stream.truncate(2**31)
    with pytest.raises(InputError, match="has 2147483648 bytes, more than protobuf can read"):
        load_model(path)


@pytest.mark.parametrize("opset", [13, 18, 24])
def test_supported_opsets_load(tmp_path, opset):
    path = tmp_path / "model.onnx"
    save_model(make_model(opset=opset), path)
    assert load_model(path).opset_import[0].version == opset


def _tensor(**fields: object) -> TensorProto:
    return TensorProto(**{"name": "weights", "data_type": 1, "dims": [32, 64], **fields})


EXTERNAL = {
    "data_location": TensorProto.EXTERNAL,
    "external_data": [{"key": "location", "value": "data"}],
}
# The checker sees no data where load_model finds that it fits: what it would say must not change.
TENSORS = {
    "good": _tensor(raw_data=WEIGHTS.tobytes()),
    "typed": _tensor(float_data=WEIGHTS.ravel()),
    "short": _tensor(raw_data=WEIGHTS.tobytes()[:-4]),
    "long": _tensor(raw_data=WEIGHTS.tobytes() + bytes(4)),
    "twice": _tensor(raw_data=WEIGHTS.tobytes(), float_data=[1.0]),
    "none": _tensor(),
    "no type": _tensor(data_type=0, raw_data=WEIGHTS.tobytes()),
    "unknown type": _tensor(data_type=99, raw_data=WEIGHTS.tobytes()),
    "text as bytes": _tensor(data_type=TensorProto.STRING, raw_data=WEIGHTS.tobytes()),
    "no name": TensorProto(data_type=1, dims=[32, 64], raw_data=WEIGHTS.tobytes()),
    "external": _tensor(**EXTERNAL),
    "external and raw": _tensor(**EXTERNAL, raw_data=WEIGHTS.tobytes()),
    "external and typed": _tensor(**EXTERNAL, float_data=[1.0]),
    "external without type": _tensor(**EXTERNAL, data_type=0),
    "external and negative": _tensor(**EXTERNAL, dims=[-32, -64]),
    "negative": _tensor(dims=[-32, -64], raw_data=WEIGHTS.tobytes()),
}


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS)
@pytest.mark.parametrize("place", ["initializer", "attribute"])
def test_the_checkers_verdict_on_tensors_is_kept(tmp_path, tensor, place):
    model = make_model()
    if place == "initializer":
        model.graph.initializer[0].CopyFrom(tensor)
    else:
        del model.graph.initializer[:]
        model.graph.node.insert(0, helper.make_node("Constant", [], ["weights"]))
        model.graph.node[0].attribute.add(name="value", type=onnx.AttributeProto.TENSOR, t=tensor)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    (tmp_path / "data").write_bytes(WEIGHTS.tobytes())
    try:
        onnx.checker.check_model(path)
    except onnx.checker.ValidationError:
        with pytest.raises(InputError, match="is not a valid ONNX model"):
            load_model(path)
    else:
        loaded = load_model(path)
        for expected in _get_all_tensors(model):
            if expected.data_location == TensorProto.EXTERNAL:
                load_external_data_for_tensor(expected, str(tmp_path))
                expected.ClearField("data_location")
        assert loaded == model


def test_stof_nodes_pass_the_checker(tmp_path):
    path = tmp_path / "model.onnx"
    save_model(make_model(domain="stof", op_type="StofMaskedAttention"), path)
    assert load_model(str(path)).graph.node[0].domain == "stof"


def test_exported_model_survives_saving(tmp_path):
    model = load_model(MODELS / "bert_sdpa_dynamo.onnx")
    save_model(model, tmp_path / "copy.onnx")
    assert load_model(tmp_path / "copy.onnx") == model


# ----------------------------------------------------------------------------------- saving


def test_large_model_gets_external_data_and_stays_unchanged(tmp_path):
    model = make_model()
    before = model.SerializeToString(deterministic=True)
    save_model(model, tmp_path / "model.onnx", embed_limit=4096)
    assert model.SerializeToString(deterministic=True) == before
    assert sorted(files(tmp_path)) == ["model.onnx", "model.onnx.data"]
    assert (tmp_path / "model.onnx").stat().st_size < 1000
    loaded = load_model(tmp_path / "model.onnx")
    np.testing.assert_array_equal(weights_of(loaded), WEIGHTS)
    # Reading brings the weights back in; nothing else may differ.
    assert loaded.SerializeToString(deterministic=True) == before


def test_typed_data_becomes_external_too(tmp_path):
    model = make_model()
    typed = helper.make_tensor("weights", TensorProto.FLOAT, WEIGHTS.shape, WEIGHTS.ravel())
    model.graph.initializer[0].CopyFrom(typed)
    save_model(model, tmp_path / "model.onnx", embed_limit=0)
    assert (tmp_path / "model.onnx.data").stat().st_size == WEIGHTS.nbytes
    np.testing.assert_array_equal(weights_of(load_model(tmp_path / "model.onnx")), WEIGHTS)


@pytest.mark.parametrize("data_type", [TensorProto.BFLOAT16, TensorProto.INT4, TensorProto.BOOL])
def test_external_data_of_any_type_loads(tmp_path, data_type):
    model = make_model()
    count = 4096
    packed = bytes(count * {TensorProto.BFLOAT16: 4, TensorProto.INT4: 1}.get(data_type, 2) // 2)
    tensor = TensorProto(name="weights", data_type=data_type, dims=[count], raw_data=packed)
    model.graph.initializer[0].CopyFrom(tensor)
    path = tmp_path / "model.onnx"
    # INT4 came with opset 21; the operator doesn't matter here.
    model.opset_import[0].version = 21
    model.ir_version = 10
    model.graph.node[0].domain = "stof"
    model.opset_import.append(helper.make_opsetid("stof", 1))
    save_model(model, path, embed_limit=0)
    assert (tmp_path / "model.onnx.data").stat().st_size == len(packed)
    assert load_model(path) == model


def with_branch() -> ModelProto:
    """A model whose weights are in a branch of an If, and nowhere else."""
    model = make_model()
    branch = helper.make_graph(
        [helper.make_node("Identity", ["inner"], ["chosen"])],
        "branch",
        [],
        [helper.make_tensor_value_info("chosen", TensorProto.FLOAT, WEIGHTS.shape)],
        [numpy_helper.from_array(WEIGHTS, "inner")],
    )
    choose = helper.make_node(
        "If", ["condition"], ["weights"], then_branch=branch, else_branch=branch
    )
    model.graph.node.insert(0, choose)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array(True), "condition"))
    return model


def test_weights_of_subgraphs_become_external_too(tmp_path):
    path = tmp_path / "model.onnx"
    save_model(with_branch(), path, embed_limit=0)
    assert (tmp_path / "model.onnx.data").stat().st_size == 2 * WEIGHTS.nbytes
    assert load_model(path) == with_branch()


def test_text_stays_in_the_model_file(tmp_path):
    model = make_model()
    words = helper.make_tensor("words", TensorProto.STRING, [500], [b"word"] * 500)
    model.graph.initializer.append(words)
    save_model(model, tmp_path / "model.onnx", embed_limit=0)
    assert (tmp_path / "model.onnx.data").stat().st_size == WEIGHTS.nbytes
    assert load_model(tmp_path / "model.onnx") == model


def test_an_outline_has_no_weights():
    light = outline(make_model())
    assert light.ByteSize() < 300
    light.graph.initializer[0].raw_data = WEIGHTS.tobytes()
    assert light == make_model()


def many_weights() -> ModelProto:
    """64 MiB of weights in 16 tensors."""
    model = make_model()
    for number in range(16):
        weights = np.zeros(2**20, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weights, f"more {number}"))
    return model


def peak_of(function: Callable[[], object]) -> int:
    """Bytes of Python objects at the peak; what protobuf keeps isn't counted."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("embed_limit", [0, 2**30], ids=["external", "embedded"])
def test_weights_go_through_python_one_tensor_at_a_time(tmp_path, embed_limit):
    model, path = many_weights(), tmp_path / "model.onnx"
    assert peak_of(lambda: save_model(model, path, embed_limit=embed_limit)) < 2**24
    assert peak_of(lambda: load_model(path)) < 2**24
    assert load_model(path) == model
    assert peak_of(lambda: check_output_path(tmp_path / "other.onnx", [path])) < 2**20


def test_large_model_replaces_a_large_model(tmp_path):
    path = external(tmp_path)
    model = make_model()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(WEIGHTS + 1, "weights"))
    save_model(model, path, embed_limit=0)
    np.testing.assert_array_equal(weights_of(load_model(path)), WEIGHTS + 1)
    assert sorted(files(tmp_path)) == ["model.onnx", "model.onnx.data"]


@pytest.mark.parametrize("embed_limit", [0, 10**6], ids=["external", "embedded"])
@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failed_save_leaves_everything_as_it_was(
    tmp_path, monkeypatch, embed_limit, failing, error
):
    path = external(tmp_path)
    before = files(tmp_path)
    model = make_model()
    real = getattr(os, failing)

    def fail_on_model(*args):
        # The model file comes last: everything before it has to be undone.
        if failing == "fsync" or Path(args[1]).name == "model.onnx":
            raise error
        return real(*args)

    monkeypatch.setattr(os, failing, fail_on_model)
    wanted = OutputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(wanted):
        save_model(model, path, embed_limit=embed_limit)
    assert files(tmp_path) == before
    assert model == make_model()


@pytest.mark.parametrize("embed_limit", [0, 10**6], ids=["external", "embedded"])
def test_model_too_large_to_serialize_is_an_output_error(tmp_path, monkeypatch, embed_limit):
    monkeypatch.setattr(saving, "PROTOBUF_LIMIT", 100)
    with pytest.raises(OutputError, match=r"can't be serialized: it would have \d+ bytes"):
        save_model(make_model(), tmp_path / "model.onnx", embed_limit=embed_limit)
    assert files(tmp_path) == {}


def test_permissions_are_those_of_an_ordinary_file(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    path = tmp_path / "model.onnx"
    save_model(make_model(), path)
    assert path.stat().st_mode == plain.stat().st_mode
    path.chmod(0o640)
    save_model(make_model(), path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("embed_limit", [0, 2**20])
def test_a_name_that_just_fits_is_written(tmp_path, embed_limit):
    longest = os.pathconf(tmp_path, "PC_NAME_MAX")
    path = tmp_path / ("x" * (longest - len(".data")))
    save_model(make_model(), path, embed_limit=embed_limit)
    assert load_model(path) == make_model()


def test_symbolic_link_is_followed_not_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    target = tmp_path / "real" / "model.onnx"
    link = tmp_path / "link.onnx"
    link.symlink_to(target)
    save_model(make_model(), link)
    assert link.is_symlink()
    assert load_model(target) == make_model()


# ----------------------------------------------------------------------------- output paths


BAD_OUTPUTS = {
    "missing directory": ("nowhere/model.onnx", "nowhere' does not exist"),
    "directory": ("folder", "is a directory"),
    "file as directory": ("model.onnx/x.onnx", "does not exist"),
    "device": ("/dev/null", "is not a regular file"),
    "not writable": ("/proc/model.onnx", "can't be written"),
    "long name": ("x" * 300, "is too long for its file system"),
    "link to a pipe": ("pipe", "is not a regular file"),
}


@pytest.mark.parametrize(
    "write", [lambda p: check_output_path(p, []), lambda p: save_model(make_model(), p)]
)
@pytest.mark.parametrize(("output", "message"), BAD_OUTPUTS.values(), ids=BAD_OUTPUTS)
def test_bad_output_is_refused(tmp_path, output, message, write):
    external(tmp_path)
    (tmp_path / "folder").mkdir()
    reader, writer = os.pipe()
    (tmp_path / "pipe").symlink_to(f"/proc/self/fd/{writer}")
    before = files(tmp_path)
    with pytest.raises(OutputError) as caught, os.fdopen(reader), os.fdopen(writer):
        write(tmp_path / output)
    assert message in str(caught.value)
    assert files(tmp_path) == before


def test_write_protected_file_is_refused(tmp_path, monkeypatch):
    path = external(tmp_path)
    # Root may write anything, so the answer of the system is replaced.
    monkeypatch.setattr(os, "access", lambda *args: False)
    with pytest.raises(OutputError, match="write-protected"):
        check_output_path(path, [])


@pytest.mark.parametrize("link", ["same", "relative", "symlink", "hardlink", "data", "its data"])
def test_output_that_is_an_input_is_refused(tmp_path, monkeypatch, link):
    source = external(tmp_path)
    output = tmp_path / "other.onnx"
    if link == "same":
        output = source
    elif link == "relative":
        monkeypatch.chdir(tmp_path)
        output = Path("model.onnx")
    elif link == "symlink":
        output.symlink_to(source)
    elif link == "hardlink":
        os.link(source, output)
    elif link == "data":
        output = tmp_path / "model.onnx.data"
    else:
        # The new model's own data file would land on the data of the input.
        (tmp_path / "inner.onnx").write_bytes(source.read_bytes())
        source = tmp_path / "inner.onnx"
        output = tmp_path / "model.onnx"
    before = files(tmp_path)
    with pytest.raises(OutputError, match="is the same file as input"):
        check_output_path(output, [MODELS / "bert_sdpa_dynamo.onnx", source])
    assert files(tmp_path) == before


def test_good_output_is_accepted_and_nothing_is_written(tmp_path):
    source = external(tmp_path)
    before = files(tmp_path)
    check_output_path(tmp_path / "new.onnx", [source])
    check_output_path(tmp_path / "new.onnx", [tmp_path / "missing.onnx"])
    assert files(tmp_path) == before


@pytest.mark.parametrize("output", [".", "", "/"])
def test_an_output_that_names_no_file_is_refused(output):
    with pytest.raises(OutputError, match="names no file"):
        check_output_path(output, [])
