"""The HTTP API: one module per noun, each with its `router`; errors are problem+json."""
