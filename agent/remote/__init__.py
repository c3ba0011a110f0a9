"""What an operator may ask of this device from afar, and how it answers."""
