"""The local face: what programs on this device ask the models, over HTTP."""
