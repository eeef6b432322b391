"""Laws of `--engine auto`: the fastest that is exact enough, timed once; no cache fails a prediction."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from unetpp.engines import processor, timings
from unetpp.engines.engine import Engine
from unetpp.engines.family import Family, choose
from unetpp.models.about import About

ABOUT = About({"widths": [4, 6, 8]}, None, sha256="1" * 64)
TIMES = {"torch": 8.0, "torch-bf16": 5.0, "onnxruntime": 4.0, "openvino": 6.0, "openvino-int8": 1.0}


def row(engine: str, within: bool = True) -> dict:
    return {"depth": "L2", "engine": engine, "sha256": None, "difference_iou": -0.001, "within": within}


MEASURED = {"engines": [row("torch-bf16"), row("onnxruntime"), row("openvino"), row("openvino-int8", within=False)]}


class Machine:
    """One on which all engines are installed and take the times above; it counts what is timed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cache: Path):
        self.probed: list[tuple] = []
        self.here = list(TIMES)
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        monkeypatch.setattr(Family, "engines", lambda *_: list(self.here))
        monkeypatch.setattr("unetpp.engines.family.open_engine", lambda _family, _depth, name: name)
        monkeypatch.setattr("unetpp.engines.timings._affordable", lambda _engine, _count, *asked: asked)
        monkeypatch.setattr("unetpp.engines.timings.time_engines", self._time)

    def _time(self, engines: dict, size: tuple, batch: int) -> dict[str, float]:
        self.probed.append((size, batch))
        return {name: TIMES[name] for name in engines}


@pytest.fixture
def machine(monkeypatch, tmp_path) -> Machine:
    return Machine(monkeypatch, tmp_path)


def family(measured: dict | None = MEASURED) -> Family:
    return Family(ABOUT, Path("model.safetensors"), None, measured)


def test_the_fastest_within_the_tolerance_is_chosen_and_said(machine):
    name, why = choose(family(), 2, (96, 128), 4)
    assert name == "onnxruntime"
    assert why.startswith("engine onnxruntime: the fastest of 4 here, 2.0 times as fast as torch; ")
    assert why.endswith("its IoU on val is -0.10 points from fp32")
    assert machine.probed == [((96, 128), 4)]
    assert choose(family(), 2, (4000, 128))[0] == "onnxruntime"  # by tiles
    assert machine.probed[1:] == [((1024, 128), 1)]


def test_without_measurements_it_is_torch_or_what_computes_in_fp32(machine):
    for here, chosen in ((list(TIMES), "torch"), (["onnxruntime", "openvino", "openvino-int8"], "onnxruntime")):
        machine.here = here
        name, why = choose(family(None), 2, (96, 96))
        assert (name, "not measured" in why) == (chosen, True)
    machine.here = ["torch", "openvino-int8"]
    assert choose(family(), 2, (96, 96)) == (
        "torch",
        "engine torch: no other engine installed here is within the tolerance",
    )
    assert machine.probed == []


def test_what_was_timed_is_kept_for_the_same_question_on_the_same_machine(machine, monkeypatch):
    first = choose(family(), 2, (96, 96))
    assert choose(family(), 2, (96, 96)) == first
    assert len(machine.probed) == 1
    for again in (lambda: choose(family(), 2, (96, 97)), lambda: choose(family(), 2, (96, 96), 8)):
        again()
    assert len(machine.probed) == 3
    machine.here.remove("openvino")  # another set of engines
    choose(family(), 2, (96, 96))
    assert len(machine.probed) == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    choose(family(), 2, (96, 96))
    assert len(machine.probed) == 5


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"[]", b'{"format": 2}', b'{"format": 1, "times_ms": 3}', b'{"format": 1']
)
def test_a_damaged_cache_is_written_anew(machine, tmp_path, content):
    place = tmp_path / "unetpp/engines.json"
    place.parent.mkdir()
    place.write_bytes(content)
    assert choose(family(), 2, (96, 96))[0] == "onnxruntime"
    choose(family(), 2, (96, 96))
    assert len(machine.probed) == 1
    assert [path.name for path in place.parent.iterdir()] == ["engines.json"]
    place.write_text(place.read_text().replace("4.0", '"quick"'))  # as it should be, but for a value
    assert choose(family(), 2, (96, 96))[0] == "onnxruntime"
    assert len(machine.probed) == 2


def test_a_home_that_cannot_be_written_fails_nothing(machine, tmp_path):
    (tmp_path / "unetpp").write_text("a file where the folder should be")
    assert choose(family(), 2, (96, 96))[0] == choose(family(), 2, (96, 96))[0] == "onnxruntime"
    assert len(machine.probed) == 2


@pytest.mark.parametrize(
    ("ms", "asked", "timed"),  # ms of 64 x 64 px; three seconds for two passes of four engines
    [
        (1.0, ((96, 96), 16), ((96, 96), 16)),
        (20.0, ((512, 512), 1), ((256, 256), 1)),
        (20.0, ((128, 128), 16), ((128, 128), 4)),  # the batch first
        (9000.0, ((512, 512), 16), ((64, 64), 1)),
    ],
)
def test_what_is_timed_takes_seconds_whatever_is_asked(monkeypatch, ms, asked, timed):
    monkeypatch.setattr(timings, "time_engines", lambda engines, *_, **__: dict.fromkeys(engines, ms))
    engine = cast(Engine, SimpleNamespace(name="torch"))
    assert timings._affordable(engine, 4, *asked) == timed


@pytest.mark.parametrize(
    ("flags", "bf16", "fp16"),
    [
        ("flags : fma avx2 avx512f avx512bw avx512_vnni", False, False),  # torch would emulate both
        ("flags : avx512f avx512_bf16", True, False),
        ("flags : avx512f amx_tile amx_bf16 avx512_fp16", True, True),
        ("Features : fp asimd bf16", True, False),
        ("", False, False),
    ],
)
def test_a_precision_is_offered_where_the_processor_computes_in_it(monkeypatch, tmp_path, flags, bf16, fp16):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nmodel name : X\n{flags}\n\nprocessor : 1\n")
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    processor.computes_in.cache_clear()
    try:
        assert [processor.computes_in(one) for one in ("fp32", "bf16", "fp16")] == [True, bf16, fp16]
    finally:
        processor.computes_in.cache_clear()
