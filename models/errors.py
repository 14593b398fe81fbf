"""Errors of models: one tree, drawn here. Knows no torch.

ModelError
├── UnknownModelError    a name or a version that no model has
├── CardError            a card is missing, cannot be read, or says what cannot be
├── WeightsError         weights are missing, too large, damaged, or not those that the card describes
├── TrainingDataError    images for training are missing, unreadable or not allowed
└── TrainingError        a run cannot be resumed, or its loss is not finite

Every error has a stable `code` and an `advice`: one plain sentence on what to do. Messages say which model, what was
expected and what came; never a path, because they go to whoever asked for the model. What a peer sent stands in
quotation marks, so that a log can leave it out; names of models that exist do not.
"""


class ModelError(Exception):
    """Base of everything that is wrong with a model."""

    code = "model"
    advice = "Run `echotrain models verify` where the server runs."


class UnknownModelError(ModelError):
    """A name or a version that no model has."""

    code = "unknown_model"
    advice = "Choose one of the models that `echotrain models list` shows."


class CardError(ModelError):
    """A card is missing, cannot be read, or says what cannot be."""

    code = "bad_card"


class WeightsError(ModelError):
    """Weights are missing, too large, damaged, or not those that the card describes."""

    code = "bad_weights"


class TrainingDataError(ModelError):
    """Images for training are missing, unreadable or not allowed."""

    code = "training_data"
    advice = "Give HDF5 files of slices whose licence allows training."


class TrainingError(ModelError):
    """A run cannot be resumed, or its loss is not finite."""

    code = "training"
    advice = "Resume from the last checkpoint with the settings it was made with, or begin anew."
