"""Training of the models: data, loop, one recipe file a model, calibration of uncertainty."""
