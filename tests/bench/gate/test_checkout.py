"""Another commit of a repository: there while it is needed, gone afterwards, with packages of its own if need be."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bench.errors import UserError
from bench.gate import checkout
from bench.gate.checkout import checked_out, here
from bench.gate.protocol import PROTOCOL


def git(folder, *arguments):
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    return subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Two commits: `code.py` says 1, then 2."""
    folder = tmp_path / "repository"
    (folder / "src").mkdir(parents=True)
    git(folder, "init", "--quiet", "--initial-branch=main")
    for number in (1, 2):
        (folder / "code.py").write_text(f"NUMBER = {number}\n")
        (folder / "src" / "mine.py").write_text(f"NUMBER = {number}\n")
        (folder / "requirements.txt").write_text("pinned==1\n")
        (folder / "bench" / "gate").mkdir(parents=True, exist_ok=True)
        (folder / checkout._PROTOCOL_FILE).write_text(f"PROTOCOL = {PROTOCOL}\n")
        git(folder, "add", ".")
        git(folder, "commit", "--quiet", "-m", str(number))
    monkeypatch.setattr(checkout, "ROOT", folder)
    monkeypatch.setenv("ROOBENCH_CACHE", str(tmp_path / "cache"))
    return folder


def test_a_commit_is_there_and_gone_afterwards(repository):
    with checked_out("HEAD~1", None, print) as base:
        assert checkout.Path(base.folder, "code.py").read_text() == "NUMBER = 1\n"
        assert base.python == sys.executable
        assert base.commit == git(repository, "rev-parse", "HEAD~1")
        folder = base.folder
    assert not checkout.Path(folder).exists()
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    assert (repository / "code.py").read_text() == "NUMBER = 2\n"


def test_it_goes_when_the_gate_fails(repository):
    with pytest.raises(KeyError), checked_out("main", None, print):
        raise KeyError
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_a_plugins_modules_come_first(repository, tmp_path, monkeypatch):
    monkeypatch.setattr(checkout, "ROOT", tmp_path)  # the bench lies elsewhere
    with checked_out("HEAD~1", repository, print) as base:
        assert base.folder == str(tmp_path)
        found = [checkout.Path(path) / "mine.py" for path in base.paths]
        assert [path.read_text() for path in found if path.exists()] == ["NUMBER = 1\n"]
    assert here(repository).paths == (str(repository / "src"), str(repository))
    assert here(repository).commit == git(repository, "rev-parse", "HEAD")
    assert here(None).paths == ()
    with checked_out("HEAD~1", repository / "src", print) as base:  # a plug-in below the repository's top
        assert (checkout.Path(base.paths[-1]) / "mine.py").read_text() == "NUMBER = 1\n"


def test_what_cannot_be_checked_out_is_told(repository, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"--base nowhere: .*no such revision"), checked_out("nowhere", None, print):
        pass
    with monkeypatch.context() as patch:
        patch.setattr(checkout, "ROOT", tmp_path)
        with pytest.raises(UserError, match=r"--base HEAD: .*without its history"), checked_out("HEAD", None, print):
            pass
    elsewhere = tmp_path / "no-repository"
    elsewhere.mkdir()
    told = rf"--plugin {elsewhere}: .*not a git repository.*; give a folder in a git repository"
    with pytest.raises(UserError, match=told), checked_out("main", elsewhere, print):
        pass
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="git cannot be run"), checked_out("HEAD", None, print):
        pass


@pytest.fixture
def pinned_otherwise(repository, monkeypatch):
    """The newest commit pins something else; installing only leaves a note of what was asked."""
    (repository / "requirements.txt").write_text("pinned==2\n")
    asked, run = [], subprocess.run

    def fake(command, **more):
        if command[0] == "git":
            return run(command, **more)
        asked.append(command)
        if "venv" in command:
            checkout.Path(command[-1]).mkdir(parents=True)
        failed = fake.fails and "pip" in command
        return subprocess.CompletedProcess(command, int(failed), "", "no such package" if failed else "")

    fake.fails = False
    monkeypatch.setattr(checkout.subprocess, "run", fake)
    return asked, fake


def test_other_pins_get_an_environment_once(pinned_otherwise):
    asked, _ = pinned_otherwise
    pythons = set()
    for _ in range(2):
        with checked_out("HEAD", None, print) as base:
            pythons.add(base.python)
    assert len(pythons) == 1
    assert sys.executable not in pythons
    assert [("venv" in command, "pip" in command) for command in asked] == [(True, False), (False, True)]


def test_packages_that_cannot_be_installed_are_told(pinned_otherwise):
    pinned_otherwise[1].fails = True
    with pytest.raises(UserError, match=r"cannot be installed \(no such package\)"), checked_out("HEAD", None, print):
        pass


@pytest.mark.parametrize(("theirs", "told"), [("PROTOCOL = 1\n", "speaks protocol 1 of the gate"), (None, "is older")])
def test_a_commit_of_another_protocol_is_refused_with_one_that_works(repository, theirs, told):
    file, works = repository / checkout._PROTOCOL_FILE, git(repository, "rev-parse", "--short", "HEAD~1")
    file.write_text(theirs) if theirs else file.unlink()
    git(repository, "commit", "--quiet", "--all", "-m", "another protocol")
    with pytest.raises(UserError) as refusal, checked_out("HEAD", None, print):
        pass
    assert told in str(refusal.value)
    advised = str(refusal.value).partition(": give ")[2].split()[0]
    assert works == advised
    with checked_out(advised, None, print):
        pass
