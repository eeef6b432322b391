"""The pipeline around `unetpp`: params, sources, Ray, MLflow and a file for each stage."""

import signal
import sys

from pipelines.core.command import end_at_once
from unetpp.offline import silence
from unetpp.threads import set_threads

silence()
set_threads()
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, end_at_once)  # until `run_command`
