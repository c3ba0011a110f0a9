"""Inference in supervised workers: who answers, what is counted, when a model is trusted."""
