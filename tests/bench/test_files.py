"""Users' paths, and files that appear whole, with the permissions that the user's umask leaves."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bench.errors import UserError
from bench.figures.records import write_json
from bench.files import cache_root, check_output, check_writable, save_tensors, user_file, user_path


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_home_is_expanded_and_other_paths_stay_as_they_are(home):
    assert user_path("~/runs") == home / "runs"
    assert user_path("runs/../x") == Path("runs/../x")
    assert user_path(home / "absent") == home / "absent"


def test_a_name_with_a_tilde_can_be_written_all_the_same(home):
    spelled = user_path("./~nobody/x")
    assert spelled == home / "~nobody" / "x"
    assert user_path(str(spelled)) == spelled


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("~nosuchuser/x", r"no such user's home: write \./~nosuchuser/x"),
        ("x" * 300, "File name too long"),
        ("y/" * 3000, "File name too long"),
        ("\udcff", "not UTF-8 text"),
        ("a\0b", "null"),
        ("file/below", "Not a directory"),
        ("", "it is empty"),
    ],
)
def test_what_cannot_be_a_path_is_told(home, text, reason):
    (home / "file").write_text("")
    with pytest.raises(UserError, match=f"cannot use the path .*: .*{reason}"):
        user_path(text)


def test_a_file_to_read_must_be_one(home):
    (home / "file").write_text("")
    assert user_file("~/file") == home / "file"
    with pytest.raises(UserError, match="cannot read absent: no such file"):
        user_file("absent")
    with pytest.raises(UserError, match="it is a folder"):
        user_file(home)


def test_a_place_that_cannot_be_written_is_told_by_its_flag(home):
    (home / "file").write_text("")
    check_writable(home / "new" / "folder")
    check_output(home / "new" / "file", "--json")
    check_output(None, "--json")
    assert [path.name for path in home.iterdir()] == ["file"]
    with pytest.raises(UserError, match="choose another folder with --plots"):
        check_writable(home / "file" / "below", "--plots")
    with pytest.raises(UserError, match="choose another folder with --json"):
        check_output(home / "file" / "x.json", "--json")
    with pytest.raises(UserError, match=r"--json .* is a folder"):
        check_output(home, "--json")


def test_tensors_are_written_with_the_permissions_that_the_umask_leaves(home):
    old = os.umask(0o027)
    try:
        save_tensors({"x": torch.ones(2)}, home / "x.safetensors", {"format": "pt"})
    finally:
        os.umask(old)
    assert stat.S_IMODE((home / "x.safetensors").stat().st_mode) == 0o640
    assert torch.equal(load_file(home / "x.safetensors")["x"], torch.ones(2))
    with pytest.raises(ValueError, match="Key `y`"):
        save_tensors({"x": torch.ones(2), "y": "no tensor"}, home / "x.safetensors")
    assert [path.name for path in home.iterdir()] == ["x.safetensors"]
    assert torch.equal(load_file(home / "x.safetensors")["x"], torch.ones(2))


def test_the_cache_is_where_the_environment_says(home, monkeypatch):
    monkeypatch.setenv("ROOBENCH_CACHE", "~/kept")
    assert cache_root() == home / "kept"
    monkeypatch.setenv("ROOBENCH_CACHE", "")
    assert cache_root() == home / ".cache" / "roobench"
    monkeypatch.setenv("ROOBENCH_CACHE", "~nosuchuser/x")
    with pytest.raises(UserError, match="set ROOBENCH_CACHE"):
        cache_root()


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_records_have_the_permissions_that_the_umask_leaves(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_json(tmp_path / "run.json", {})
        write_json(tmp_path / "run.json", {"again": 1})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "run.json").stat().st_mode) == mode
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
