"""How bytes come: chunks over either road, deltas, what is sealed and what is kept sealed."""
