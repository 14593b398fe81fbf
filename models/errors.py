"""Errors of models and their training.

ModelError
└── TrainingDataError    images that cannot be trained from
"""

from __future__ import annotations


class ModelError(Exception):
    """Something about a model is not as it must be."""


class TrainingDataError(ModelError):
    """Images for training are missing, unreadable or not allowed."""
