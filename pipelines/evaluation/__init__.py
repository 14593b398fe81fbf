"""Images with a known truth, undersampled as a scanner would: what reconstructions are measured and calibrated on."""
