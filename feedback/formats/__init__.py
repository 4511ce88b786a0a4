"""Feedback files, in and out: Label Studio exports, HH, PandaLM, TRL's formats, CSV, our own."""

from feedback.formats.detect import FORMATS, Format
from feedback.formats.read import read_feedback
from feedback.formats.result import BadRow, Read, ReadResult, Skip
from feedback.formats.write import write_feedback, write_rows, write_standing

__all__ = [
    "FORMATS",
    "BadRow",
    "Format",
    "Read",
    "ReadResult",
    "Skip",
    "read_feedback",
    "write_feedback",
    "write_rows",
    "write_standing",
]
