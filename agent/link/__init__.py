"""The link to the broker: addresses, connections, and what stands in their way."""
