"""What goes from Ray's processes to the stage."""

import pickle

from ray import cloudpickle

from pipelines.training.ray_worker import describe_loss, reported
from unetpp.errors import UserError


def test_rows_of_whole_epochs_reach_the_stage_in_their_order():
    rows = []
    with reported(rows.append) as callbacks:
        sent = cloudpickle.dumps(callbacks)  # pyright: ignore[reportPrivateImportUsage] - Ray does not list it
        (travelled,) = pickle.loads(sent)  # as Ray's controller gets it
        for epoch in range(300):
            travelled.after_report(None, [{"epoch": epoch, "step": 1}], None)
            travelled.after_report(None, [{"epoch": epoch, "text": "x" * 500}, {"epoch": -1}], None)
    assert rows == [{"epoch": epoch, "text": "x" * 500} for epoch in range(300)]


def test_a_process_that_only_lost_another_one_is_no_cause():
    assert describe_loss(1, ConnectionError("reset by peer")) is None
    assert describe_loss(1, RuntimeError("[gloo] timed out")) is None
    assert describe_loss(1, ValueError("a bug")) == "process 1: ValueError: a bug"
    assert describe_loss(1, UserError("no such file")) == "process 1: UserError: no such file"
