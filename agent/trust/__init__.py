"""What this device takes on trust: assignments judged by both repositories, time, and its own floor."""
