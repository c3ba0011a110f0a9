"""Training, compiling, signing, fleet, rollouts, ingest, API, pages and the operators' CLI."""
