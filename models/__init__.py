"""Networks, weights and their training; nothing of pipelines or servers."""
