"""What stands between a scanner and a GPU: sockets, the protocol, assembly, workers, administration."""
