"""The journal takes over what is finished and nothing else."""

import pytest

from moeba.demo import run as run_module
from moeba.demo.journal import FILE, Entry, Journal, complete_or_absent, key_of
from moeba.demo.settings import TINY
from moeba.demo.steps import Outcome, Step
from moeba.demo.watcher import Watcher


def test_an_entry_counts_only_with_its_key_and_its_folder(tmp_path):
    journal = Journal(tmp_path / "demo")
    entry = Entry("one", "do one", "key", 1.0, "it is done", {"figure": 1})
    journal.record(entry)
    assert journal.find("one", "key") is None, "its folder is not there"
    (tmp_path / "demo" / "one").mkdir()
    again = Journal(tmp_path / "demo")
    assert again.find("one", "key") == entry
    assert again.find("one", "other key") is None
    assert again.find("two", "key") is None


def test_forgetting_removes_a_step_and_no_other(tmp_path):
    journal = Journal(tmp_path)
    for name in ("moe", ".moe.unfinished", ".moe.partial", "moe-trained", ".moe-trained.unfinished"):
        (tmp_path / name).mkdir()
    journal.forget("moe")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".moe-trained.unfinished",
        "moe-trained",
        FILE,
    ]


def test_a_folder_of_someone_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="no demo wrote it"):
        Journal(tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        Journal(tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 1}', '{"version": 1, "steps": [{"name": "a"}]}'])
def test_a_damaged_journal_is_named(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ValueError, match="steps.json is damaged"):
        Journal(tmp_path)


def test_an_interrupted_folder_does_not_appear(tmp_path):
    with pytest.raises(KeyboardInterrupt), complete_or_absent(tmp_path / "a") as folder:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with complete_or_absent(tmp_path / "a") as folder:
        assert not any(folder.iterdir()), "what the interrupted run wrote is still there"
    assert (tmp_path / "a").is_dir()


def test_the_key_hangs_on_everything():
    keys = {
        key_of("a", {"x": 1}, ["b"], {"torch": "2"}),
        key_of("c", {"x": 1}, ["b"], {"torch": "2"}),
        key_of("a", {"x": 2}, ["b"], {"torch": "2"}),
        key_of("a", {"x": 1}, ["d"], {"torch": "2"}),
        key_of("a", {"x": 1}, ["b"], {"torch": "3"}),
    }
    assert len(keys) == 5


class Heard(Watcher):
    def __init__(self):
        self.steps = []

    def ends(self, entry, reused):
        self.steps.append((entry.name, "taken over" if reused else "done"))


@pytest.fixture
def two_steps(monkeypatch):
    """Stand in for the real steps: two that write a folder; the second fails as long as `broken` is set."""
    broken = []

    def write(name):
        def step(space):
            with complete_or_absent(space.folder(name)):
                if broken and name == "two":
                    raise KeyboardInterrupt
            return Outcome("done", {})

        return step

    steps = (Step("one", "do one", (), write("one")), Step("two", "do two", ("one",), write("two")))
    monkeypatch.setattr(run_module, "STEPS", steps)
    return broken


def heard(folder, settings=TINY):
    watcher = Heard()
    run_module.run(folder, settings, watcher)
    return watcher.steps


def test_a_second_run_takes_everything_over(tmp_path, two_steps):
    assert heard(tmp_path) == [("one", "done"), ("two", "done")]
    assert heard(tmp_path) == [("one", "taken over"), ("two", "taken over")]


def test_a_killed_run_goes_on_where_it_was(tmp_path, two_steps):
    two_steps.append("broken")
    with pytest.raises(KeyboardInterrupt):
        heard(tmp_path)
    two_steps.clear()
    assert heard(tmp_path) == [("one", "taken over"), ("two", "done")]


def test_what_a_killed_run_left_unfinished_goes_at_once(tmp_path, two_steps):
    heard(tmp_path)
    (tmp_path / ".one.unfinished").mkdir()
    (tmp_path / ".one.unfinished" / "config.json").write_text("{}")
    assert heard(tmp_path) == [("one", "taken over"), ("two", "taken over")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", FILE, "two"]


def test_two_runs_at_once(tmp_path, two_steps):
    with Journal.opened(tmp_path), pytest.raises(ValueError, match="another run is writing into"):
        heard(tmp_path)
    assert heard(tmp_path) == [("one", "done"), ("two", "done")]


def test_other_settings_and_another_program_start_again(tmp_path, two_steps, monkeypatch):
    heard(tmp_path)
    assert heard(tmp_path, run_module.DemoSettings()) == [("one", "done"), ("two", "done")]
    monkeypatch.setattr(run_module, "_program", lambda: {"moeba": "another"})
    assert heard(tmp_path, run_module.DemoSettings()) == [("one", "done"), ("two", "done")]


def test_a_deleted_folder_is_made_again(tmp_path, two_steps):
    heard(tmp_path)
    (tmp_path / "one").rmdir()
    assert heard(tmp_path) == [("one", "done"), ("two", "taken over")]
