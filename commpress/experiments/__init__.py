"""Experiments: the main job, and what the demo makes of its runs.

with process_group():
    job = MainJob(Settings(codec="hadamard+lloyd:2"), writer=RunWriter("run.jsonl"))
    job.run()
    job.close()
"""

from commpress.experiments._job import MainJob, Progress, process_group
from commpress.experiments._launch import RunError, cores, launch
from commpress.experiments._model import SHAPES, ByteGPT, Shape
from commpress.experiments._plot import PlotError, plot
from commpress.experiments._records import RecordError, Run, RunWriter, file_name, read_run
from commpress.experiments._report import table
from commpress.experiments._settings import QUICK, Settings
from commpress.experiments._text import Corpus, CorpusError, standard_library
from commpress.experiments._traffic import Traffic, TrafficMeter
from commpress.experiments._ways import PEERS, is_peer

__all__ = [
    "PEERS",
    "QUICK",
    "SHAPES",
    "ByteGPT",
    "Corpus",
    "CorpusError",
    "MainJob",
    "PlotError",
    "Progress",
    "RecordError",
    "Run",
    "RunError",
    "RunWriter",
    "Settings",
    "Shape",
    "Traffic",
    "TrafficMeter",
    "cores",
    "file_name",
    "is_peer",
    "launch",
    "plot",
    "process_group",
    "read_run",
    "standard_library",
    "table",
]
