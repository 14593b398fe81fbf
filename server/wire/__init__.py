"""The MRD streaming protocol as pure state: bytes in, events out; events in, buffers out."""
