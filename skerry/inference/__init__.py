"""The Open Inference Protocol v2: its names of types, and its codec for whoever holds the arrays."""
