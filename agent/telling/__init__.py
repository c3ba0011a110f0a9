"""What this device says: its outbox, until heard, and the reported half of its twin."""
