"""What a radiographer reads when a parameter is wrong."""

import pytest

from pipelines.errors import ParameterError
from pipelines.parameter_help import allowed
from pipelines.registry import find, pipelines


@pytest.mark.parametrize(
    ("pipeline", "values", "said"),
    [
        ("sense", {"iterations": "0"}, ["'iterations'", "a whole number, at least 1, at most 500", "'0' came"]),
        ("sense", {"tolerance": "many"}, ["'tolerance'", "a number, above 0, below 1", "'many' came"]),
        ("sense", {"regularisation": 11}, ["'regularisation'", "a number, at least 0, at most 10, or nothing", "'11'"]),
        ("sense", {"whiten": "perhaps"}, ["'whiten'", "true or false", "'perhaps' came"]),
        ("zero_filled", {"combine": "best"}, ["'combine'", "one of rss, sensitivity", "'best' came"]),
        ("sense", {"parts": "magnitude,colour"}, ["'parts'", "magnitude, phase, real, imaginary, complex"]),
        ("sense", {"iteratons": 3}, ["no parameter 'iteratons'", "iterations", "whiten"]),
        ("sense", {"iterations": "9" * 500 + "\n\x1b"}, ["'iterations'", "..."]),
    ],
)
def test_the_message_names_the_parameter_what_came_and_what_is_allowed(pipeline, values, said):
    with pytest.raises(ParameterError) as caught:
        find(pipeline).parse(values)

    message = str(caught.value)
    assert f"pipeline '{pipeline}'" in message
    for part in said:
        assert part in message
    assert message.isprintable()
    assert len(message) < 400


@pytest.mark.parametrize("name", sorted(pipelines()))
def test_every_parameter_can_be_described(name):
    model = find(name).parameters
    for parameter in model.model_fields:
        assert "a value" not in allowed(model, parameter)
