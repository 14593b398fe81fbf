"""Errors of models: one tree, drawn here. Knows no torch.

ModelError
├── UnknownModelError    a name or a version that no model has
├── CardError            a card is missing, cannot be read, or says what cannot be
└── WeightsError         weights are missing, too large, damaged, or not those that the card describes

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
