"""The cache: whole entries, of this user, or none."""

import os
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest

from stof_onnx.jit import cache as cache_module
from stof_onnx.jit.cache import KernelCache, default_directory, survey_cache
from stof_onnx.jit.compile import compile_kernels
from stof_onnx.jit.entry import DamagedEntryError, decode, encode
from stof_onnx.jit.errors import CacheWarning
from tests.jit.kernels import IMPORT_PATH, made_up_kernel, scale_job

KERNEL = made_up_kernel()
PTX = replace(KERNEL, kind="ptx", resources=None)


def entry_of(root, kernel=KERNEL):
    return root / "kernels" / kernel.key[:2] / f"{kernel.key}.kernel"


@pytest.fixture
def stored(tmp_path):
    KernelCache(tmp_path).store(KERNEL)
    return entry_of(tmp_path)


@pytest.mark.parametrize("kernel", [KERNEL, PTX, replace(KERNEL, log="naïve \ud800 \0")])
def test_what_is_stored_is_found(tmp_path, kernel):
    KernelCache(tmp_path).store(kernel)
    cache = KernelCache(tmp_path)
    assert cache.load(kernel.key) == kernel
    assert cache.load("0" * 64) is None
    assert cache.directory == tmp_path
    assert (cache.hits, cache.misses) == (1, 1)


def test_every_flipped_byte_and_every_cut_is_noticed():
    data = encode(replace(KERNEL, image=b"\x7fELF image"))
    assert decode(data, KERNEL.key)
    for i in range(len(data)):
        flipped = data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]
        for damaged in (flipped, data[:i]):
            with pytest.raises(DamagedEntryError):
                decode(damaged, KERNEL.key)
    with pytest.raises(DamagedEntryError):
        decode(data + b"\0", KERNEL.key)


@pytest.mark.parametrize(
    "kernel",
    [
        made_up_kernel("another"),
        replace(KERNEL, kind="fatbin"),
        replace(KERNEL, resources=None),
        replace(KERNEL, kind="ptx"),
        replace(KERNEL, image=b""),
        replace(KERNEL, entry=7),
        replace(KERNEL, resources=replace(KERNEL.resources, registers="40")),
        replace(KERNEL, resources=replace(KERNEL.resources, registers=True)),
    ],
)
def test_a_sound_file_with_the_wrong_content_is_refused(kernel):
    with pytest.raises(DamagedEntryError):
        decode(encode(kernel), KERNEL.key)


def test_a_damaged_entry_is_compiled_again(tmp_path):
    (kernel,) = compile_kernels([scale_job()], cache=KernelCache(tmp_path))
    path = entry_of(tmp_path, kernel)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.warns(CacheWarning, match=rf"{kernel.key}.*checksum.*compiled again"):
        assert compile_kernels([scale_job()], cache=KernelCache(tmp_path)) == [kernel]
    assert path.read_bytes() == whole


def test_modes_are_private(stored, tmp_path):
    assert stored.stat().st_mode & 0o777 == 0o600
    for folder in (stored.parent, tmp_path / "kernels"):
        assert folder.stat().st_mode & 0o777 == 0o700


def symlinked(path):
    target = path.with_suffix(".real")
    path.rename(target)
    path.symlink_to(target)


def replaced_by_pipe(path):
    path.unlink()
    os.mkfifo(path)


def replaced_by_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda path: path.chmod(0o620), "other users can write"),
        (lambda path: path.chmod(0o602), "other users can write"),
        (symlinked, ""),
        (replaced_by_pipe, "not an ordinary file"),
        (replaced_by_folder, ""),
    ],
)
def test_an_entry_that_others_may_have_made_is_not_used(stored, tmp_path, change, reason):
    change(stored)
    with pytest.warns(CacheWarning, match=reason):
        assert KernelCache(tmp_path).load(KERNEL.key) is None


def test_an_entry_that_others_may_read_is_used(stored, tmp_path):
    stored.chmod(0o644)
    (tmp_path / "kernels").chmod(0o755)
    assert KernelCache(tmp_path).load(KERNEL.key) == KERNEL


def test_a_folder_that_others_may_write_to_is_not_used(stored, tmp_path):
    (tmp_path / "kernels").chmod(0o777)
    with pytest.warns(CacheWarning, match="STOF_ONNX_CACHE"):
        cache = KernelCache(tmp_path)
    assert cache.load(KERNEL.key) is None
    stored.unlink()
    cache.store(KERNEL)
    assert not stored.exists()
    assert cache.directory is None


def test_entries_of_another_user_are_not_used(stored, tmp_path, monkeypatch):
    cache = KernelCache(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: stored.stat().st_uid + 1)
    monkeypatch.setattr(cache_module, "_ROOT", -1)
    with pytest.warns(CacheWarning, match="other users can write"):
        assert cache.load(KERNEL.key) is None
    with pytest.warns(CacheWarning, match="other users can write"):
        assert KernelCache(tmp_path).directory is None
    # What root has put there may be used.
    monkeypatch.setattr(cache_module, "_ROOT", stored.stat().st_uid)
    assert KernelCache(tmp_path).load(KERNEL.key) == KERNEL


def test_an_unwritable_directory_costs_one_warning_and_nothing_else(tmp_path):
    file = tmp_path / "file"
    file.write_text("in the way")
    cache = KernelCache(file / "cache")
    with pytest.warns(CacheWarning) as caught:
        kernels = compile_kernels([scale_job(), scale_job("sm_90a")], cache=cache)
    assert len(kernels) == 2
    assert len(caught) == 1
    assert str(file) in str(caught[0].message)


def test_what_cannot_be_written_can_still_be_read(stored, tmp_path, monkeypatch):
    cache = KernelCache(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(cache_module.os, "replace", full)
        with pytest.warns(CacheWarning, match="No space left"):
            cache.store(made_up_kernel("another"))
    assert cache.load(KERNEL.key) == KERNEL
    assert [path.name for path in tmp_path.rglob("*.part")] == []


@pytest.mark.parametrize(
    ("own", "xdg", "expected"),
    [
        ("/own", "/xdg", "/own"),
        ("", "/xdg", "/xdg/stof-onnx"),
        (None, "/xdg", "/xdg/stof-onnx"),
        (None, "relative", "/home/somebody/.cache/stof-onnx"),
        (None, None, "/home/somebody/.cache/stof-onnx"),
    ],
)
def test_the_default_directory(monkeypatch, own, xdg, expected):
    monkeypatch.setenv("HOME", "/home/somebody")
    for name, value in (("STOF_ONNX_CACHE", own), ("XDG_CACHE_HOME", xdg)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert str(default_directory()) == expected
    assert str(KernelCache().directory) == expected


def test_without_a_home_there_is_no_cache(monkeypatch):
    def homeless():
        raise RuntimeError("no home")

    monkeypatch.setattr(cache_module, "default_directory", homeless)
    with pytest.warns(CacheWarning, match="no home"):
        cache = KernelCache()
    cache.store(KERNEL)
    assert cache.load(KERNEL.key) is None


def test_the_survey_of_a_good_place_makes_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("STOF_ONNX_CACHE", str(tmp_path / "a" / "b"))
    survey = survey_cache()
    assert (survey.directory, survey.problem) == (tmp_path / "a" / "b", "")
    assert list(tmp_path.iterdir()) == []


def test_the_survey_finds_what_a_cache_would_warn_of(monkeypatch, stored, tmp_path):
    monkeypatch.setenv("STOF_ONNX_CACHE", str(tmp_path))
    assert survey_cache().problem == ""
    with monkeypatch.context() as patch:
        # Root may write anywhere, so the answer of the system is replaced.
        patch.setattr(os, "access", lambda *_: False)
        assert f"{tmp_path / 'kernels'} can't be written" in survey_cache().problem
    (tmp_path / "kernels").chmod(0o777)
    assert "other users can write" in survey_cache().problem
    monkeypatch.setenv("STOF_ONNX_CACHE", str(stored))
    assert f"{stored} is not a directory" in survey_cache().problem


def test_the_survey_without_a_home(monkeypatch):
    def homeless():
        raise RuntimeError("no home")

    monkeypatch.setattr(cache_module, "default_directory", homeless)
    survey = survey_cache()
    assert survey.directory is None
    assert "no home" in survey.problem


WRITER = """
import sys
sys.path[:] = {path!r}
from stof_onnx.jit.cache import KernelCache
from tests.jit.kernels import made_up_kernel
cache = KernelCache({directory!r})
for i in range(300):
    cache.store(made_up_kernel(log=str(i) * 1000))
"""


def test_readers_see_whole_entries_while_processes_write(tmp_path):
    code = WRITER.format(path=IMPORT_PATH, directory=str(tmp_path))
    writers = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    cache = KernelCache(tmp_path)
    found = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        while any(writer.poll() is None for writer in writers):
            found += cache.load(KERNEL.key) is not None
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert found > 10
    assert cache.load(KERNEL.key) == made_up_kernel(log="299" * 1000)
    assert [path.name for path in entry_of(tmp_path).parent.iterdir()] == [f"{KERNEL.key}.kernel"]
