"""Parts of simulated scans, and kinds beyond `pipelines.simulate`: volumes, echo trains, non-Cartesian, cine."""
