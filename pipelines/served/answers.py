"""A trained network behind MLflow's interface: images in, masks or probabilities out, optionally within a budget."""

import base64
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR

from pipelines.served import images
from pipelines.served.params import AUTO, Request, RequestError, check_params
from pipelines.served.turns import Ticket, Turns
from unetpp.engines.engine import Engine
from unetpp.engines.family import Family, as_family, choose, open_engine
from unetpp.errors import UserError
from unetpp.images.frame import Size
from unetpp.inference.budget import TimesBySize, deepest_within, measure_times, share_of_queue
from unetpp.inference.instances import separate
from unetpp.inference.tiles import predict_image, to_mask

if TYPE_CHECKING:
    from unetpp.models.model_file import Trained

LOG = logging.getLogger(__name__)
MAX_NUMBER = 2**16 - 1  # the largest object number in a PNG


def now_ms() -> float:
    return time.perf_counter() * 1000


class Served:
    """Answers requests.

    Args:
        model: the network, from a version's folder or in memory.
        clock: the present time in milliseconds.
    """

    def __init__(self, model: "Family | Trained", clock: Callable[[], float] = now_ms):
        self.family = model if isinstance(model, Family) else as_family(model)
        self.about, self.turns, self._clock = self.family.about, Turns(), clock
        self._chosen: dict[int, str] = {}  # by depth, for "auto"
        self._engines: dict[tuple[int, str, bool], Engine] = {}
        self._times: dict[tuple[str, bool], TimesBySize] = {}
        self._slower: deque[float] = deque([1.0], maxlen=9)  # time of the last answers divided by their measured time

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> Any:
        """Answer a request; docs/serving.md lists the forms of `data` and the params.

        Raises:
            RequestError: status 400 with the reason, or 500 for an error of the server, which is in its log.
        """
        arrival_ms = self._clock()
        try:
            request = check_params(params or {}, self.about)
            entries, single = images.find_entries(data, self.about.in_channels)
            if not entries:
                raise UserError("found no image; expected at least one")
            answers, left = [], images.MAX_PIXELS

            def answer_next() -> None:
                nonlocal left
                number, count, began_ms = len(answers) + 1, len(entries), self._clock()
                with images.named_image(number, count):
                    image = images.read_image(entries[number - 1], self.about.in_channels, left)
                height, width = image.shape[:2]
                left -= height * width
                read_ms = self._clock() - began_ms
                depth, expected_ms = self._choose_depth(request, (height, width), count)
                engine = self.engine(depth, request.engine, request.mode == "mean", (height, width))
                began_ms = self._clock()
                answer = self._answer(engine, image, request)
                now = self._clock()
                if expected_ms:
                    self._slower.append((read_ms + now - began_ms) / expected_ms)
                answers.append(self._described(answer, request, depth, engine, now - arrival_ms))

            for number in range(len(entries)):
                deadline_ms = arrival_ms + (request.max_latency_ms or math.inf)
                self.turns.take(Ticket(deadline_ms, len(entries) - number), answer_next)
        except UserError as error:
            raise RequestError(str(error)) from None
        except RequestError:
            raise
        except Exception as error:
            LOG.exception("a request failed")
            raise RequestError(f"the server failed ({type(error).__name__}); see its log", INTERNAL_ERROR) from None
        if single:
            return answers[0]
        arrays = [one for one in answers if isinstance(one, np.ndarray)]
        return np.stack(arrays) if len({one.shape for one in arrays}) == 1 else answers

    def engine(self, depth: int, name: str = AUTO, mean: bool = False, size: Size = (256, 256)) -> Engine:
        """The engine for a depth, or for the mean of the heads up to it; opened at its first use.

        Args:
            size: (height, width) of the images for which "auto" chooses the fastest engine, at its first use.

        Raises:
            UserError: an engine that is not available here.
        """
        if mean:
            name = "torch"
        elif name == AUTO:
            if depth not in self._chosen:
                self._chosen[depth], why = choose(self.family, depth, size)
                LOG.info("L%d: %s", depth, why)
            name = self._chosen[depth]
        if (depth, name, mean) not in self._engines:
            heads = dict.fromkeys((one for one in self.about.depths if one <= depth), 1.0) if mean else None
            self._engines[depth, name, mean] = open_engine(self.family, None if mean else depth, name, heads=heads)
        return self._engines[depth, name, mean]

    def measure(self, engines: Mapping[int, Engine], size: tuple[int, int]) -> dict[int, float]:
        """Milliseconds by depth to answer a PNG of this size with a PNG of its mask."""
        plain = check_params({"encoding": "png"}, self.about)

        def work_on(image: np.ndarray) -> Callable[[Engine], object]:
            channels = self.about.in_channels
            entry = images.as_png(image) if channels in (1, 3) else image
            return lambda engine: self._answer(engine, images.read_image(entry, channels, images.MAX_PIXELS), plain)

        return measure_times(engines, size, work_on=work_on)

    def _choose_depth(self, request: Request, size: tuple[int, int], num_images: int) -> tuple[int, float | None]:
        """The depth that answers, and its measured time in ms if there is a budget.

        The depth is the deepest one, up to the requested one, that fits the budget, or else the shallowest. The images
        of a request share its budget. With `degrade` the load counts too: the time spent waiting, how much slower than
        measured the machine is at present, and the requests that wait behind this one.
        """
        name, mean = request.engine, request.mode == "mean"
        self.engine(request.depth, name, mean, size)  # refuses an engine that is not available
        if not request.max_latency_ms:
            return request.depth, None
        known = self._times.get((name, mean))
        if known is None:
            here = [depth for depth in self.about.depths if name == AUTO or name in self.family.engines(depth)]
            engines = {depth: self.engine(depth, name, mean, size) for depth in here}
            known = TimesBySize(partial(self.measure, engines), resized=self.about.frame is not None)
            self._times[name, mean] = known
        times = {depth: taken for depth, taken in known(size).items() if depth <= request.depth}
        share_ms = request.max_latency_ms / num_images
        if request.degrade:
            now, slower = self._clock(), median(self._slower)
            queue = [((one.deadline_ms - now) / slower, one.images) for one in self.turns.queue()]
            share_ms = share_of_queue(queue, min(times.values()))
        depth = deepest_within(times, share_ms) or min(times)
        return depth, times[depth]

    def _answer(self, engine: Engine, image: np.ndarray, request: Request) -> np.ndarray | str:
        probs = predict_image(engine, image)
        if request.mode == "probabilities":
            return probs  # (num_classes, H, W)
        if request.mode == "instances":
            return self._instances(engine, probs, request)
        mask = to_mask(probs[None], self.about.num_classes, self.about.multilabel, request.threshold)[0]  # (H, W)
        if request.encoding == "array":
            return mask
        binary = self.about.num_classes == 1 and not self.about.multilabel
        # 0 and 255, class indices, or one bit per label.
        return base64.b64encode(images.as_png(mask * np.uint8(255) if binary else mask)).decode()

    def _instances(self, engine: Engine, probs: np.ndarray, request: Request) -> np.ndarray | str:
        """The object numbers, (H, W) int32, or a 16-bit PNG as base64."""
        separation, about = engine.about.separation(), self.about
        assert separation is not None
        numbers = separate(probs, about.num_classes, separation, request.threshold, about.background)
        if request.encoding == "array":
            return numbers
        if (count := int(numbers.max(initial=0))) > MAX_NUMBER:
            raise UserError(
                f"found {count} objects; expected at most {MAX_NUMBER}, as many as a PNG can number: set "
                "encoding to array"
            )
        return base64.b64encode(images.as_png(numbers.astype(np.uint16))).decode()

    def _described(self, answer: np.ndarray | str, request: Request, depth: int, engine: Engine, ms: float) -> Any:
        """The answer, with depth, engine and time if `details` is set. A missed budget is also logged."""
        budget_ms = request.max_latency_ms
        if budget_ms:
            said = f"L{depth} by {engine.name} answered after {ms:.1f} ms of {budget_ms:g} ms"
            LOG.log(logging.INFO, said) if ms <= budget_ms else LOG.warning("missed the budget: %s", said)
        if not request.details:
            return answer
        kind = request.mode if request.mode in ("probabilities", "instances") else "mask"
        within = ms <= budget_ms if budget_ms else None
        return {kind: answer, "depth": depth, "engine": engine.name, "latency_ms": round(ms, 2), "within": within}
