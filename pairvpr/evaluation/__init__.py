"""Measure recognition on benchmarks: data sets, recall, precision and a report. Free of torch."""

from pairvpr.evaluation.benchmark import Benchmark
from pairvpr.evaluation.datasets import DATASETS, load_dataset
from pairvpr.evaluation.folders import load_folders
from pairvpr.evaluation.report import check_report_folder, sequence_warning, summary, write_report
from pairvpr.evaluation.results import Evaluation, Figures
from pairvpr.evaluation.run import evaluate

__all__ = [
    "DATASETS",
    "Benchmark",
    "Evaluation",
    "Figures",
    "check_report_folder",
    "evaluate",
    "load_dataset",
    "load_folders",
    "sequence_warning",
    "summary",
    "write_report",
]
