"""Chunks, slots and the one durable write."""
