"""What crosses the network, and nothing else: topics, messages, manifest, profile schema and report payloads."""
