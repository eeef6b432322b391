"""A thread's signal stack is what it was after somebody else has set it."""

import ctypes
import sys

import numpy as np
import pytest

from unetpp.engines.runtimes import open_export
from unetpp.engines.signal_stack import _Stack, kept_signal_stack
from unetpp.export.graphs import NEWEST_OPSET, capture, save_onnx
from unetpp.models.model_file import Trained
from unetpp.network.model import NestedUNet

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the structure is that of Linux")
SIZE = 1 << 16


def present() -> tuple[int | None, int]:
    stack = _Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
    return stack.memory, stack.size


def test_a_stack_that_was_set_inside_is_gone_afterwards():
    before, memory = present(), ctypes.create_string_buffer(SIZE)
    with kept_signal_stack():
        set_ = _Stack(ctypes.addressof(memory), 0, SIZE)
        assert ctypes.CDLL(None).sigaltstack(ctypes.byref(set_), None) == 0
        assert present() == (ctypes.addressof(memory), SIZE)
    assert present() == before


def test_openvino_leaves_the_stack_as_it_was(tmp_path):
    trained = Trained(NestedUNet([4, 6]).eval(), None)
    save_onnx(capture(trained.segmenter()), tmp_path / "model.onnx", NEWEST_OPSET)
    before = present()
    predict = open_export(tmp_path / "model.onnx", "openvino", trained.about, threads=1)
    assert predict(np.zeros((1, 3, 20, 22), np.float32)).shape == (1, 1, 20, 22)
    assert present() == before
