"""Curves of a training for TensorBoard, with it or with a stand-in for it."""

import sys
from types import SimpleNamespace

import pytest

from apr.core.errors import ParamsError
from apr.training.curves import Curves

LINES = [{"step": step, "loss": 1 / step, "kl": None, "note": "x"} for step in (1, 2, 3)]


def test_without_tensorboard_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ParamsError, match="report_to: 'tensorboard' is not allowed; allowed: 'none', or"):
        Curves("tensorboard", tmp_path / "apr")
    curves = Curves("none", tmp_path / "apr")
    curves.begin(0)
    curves.write(LINES[0])
    assert not list(tmp_path.iterdir())


def test_other_processes_than_the_first_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    curves = Curves("tensorboard", tmp_path / "apr")
    curves.begin(0)
    curves.write(LINES[0])
    assert not list(tmp_path.iterdir())


def test_a_run_that_goes_on_forgets_what_came_after(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = Curves("tensorboard", tmp_path / "apr")
    curves.begin(0)
    for line in LINES:
        curves.write(line)
    curves = Curves("tensorboard", tmp_path / "apr")
    curves.begin(2)
    curves.write(LINES[2] | {"loss": 9.0})
    events = EventAccumulator(str(tmp_path / "apr.curves"))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(event.step, round(event.value, 3)) for event in events.Scalars("loss")] == [
        (1, 1.0), (2, 0.5), (3, 9.0)]  # fmt: skip


@pytest.fixture
def written(monkeypatch):
    """What is written through a stand-in, as (name, value, step)."""
    found = []

    class Writer:
        def __init__(self, folder, purge_step):
            found.append((folder.rpartition("/")[2], None, purge_step))

        def add_scalar(self, *point):
            found.append(point)

        def flush(self):
            pass

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    return found


def test_points_are_the_numbers_of_the_log(tmp_path, written):
    curves = Curves("tensorboard", tmp_path / "apr")
    curves.begin(0)
    for line in LINES:
        curves.write(line)
    assert written == [("apr.curves", None, 1), *(("loss", 1 / step, step) for step in (1, 2, 3))]
