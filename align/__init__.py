"""Align: from a base model and human judgement to an aligned policy with evidence."""

__version__ = "0.1.0"
