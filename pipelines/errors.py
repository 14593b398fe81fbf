"""Errors of pipelines: one tree, drawn here.

PipelineError
├── HeaderError          the scan header (XML) is malformed, missing a needed element, or has an impossible value
├── AssemblyError        a readout cannot be placed where its header says it belongs
│   └── BudgetError      the header asks for more memory than the limit allows
├── ParameterError       a pipeline parameter is unknown or out of range
├── UnknownPipelineError a name that is not in the registry
├── ReconstructionError  numbers that cannot be reconstructed (no data, not finite, singular)
└── EvaluationError      a file of evaluation cases or a name of a sampling that is not understood; never in a scan

Every error has a stable `code` (shown to the scanner and in the log) and an `advice`: one plain sentence on what to do.
Messages say what was expected, what came, and where; never a name, a date or an id of a patient, never a path.
"""


class PipelineError(Exception):
    """Base of everything that pipelines raise on purpose."""

    code = "pipeline"
    advice = "Report the session id to whoever runs this server."


class HeaderError(PipelineError):
    """The scan header is malformed or has an impossible value."""

    code = "bad_header"
    advice = "Check the protocol's header on the scanner or the file with `echotrain inspect`."


class AssemblyError(PipelineError):
    """A readout cannot be placed where its header says it belongs."""

    code = "bad_acquisition"
    advice = "Check the encoding limits of the protocol with `echotrain inspect`."


class BudgetError(AssemblyError):
    """The scan needs more memory than the limit allows."""

    code = "over_limit"
    advice = "Use a smaller matrix or fewer channels, or raise the limit in the server's settings."


class ParameterError(PipelineError):
    """A pipeline parameter is unknown or out of range."""

    code = "bad_parameter"
    advice = "See `echotrain config` for the parameters of each pipeline."


class UnknownPipelineError(PipelineError):
    """A name that is not in the registry."""

    code = "unknown_pipeline"
    advice = "Choose one of the names listed."


class ReconstructionError(PipelineError):
    """The data cannot be reconstructed."""

    code = "reconstruction_failed"
    advice = "Repeat the scan; if it happens again report the session id."


class EvaluationError(PipelineError):
    """Evaluation data are not understood.

    Comes to whoever runs an evaluation, never to a scanner: only here may a message name a file.
    """

    code = "bad_evaluation_data"
    advice = "Give a file with images or fully sampled k-space, as described in `pipelines/evaluation/case_files.py`."
