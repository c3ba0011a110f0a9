"""One TOML file for each class of device, and their loader."""

from firmware_profiles.loader import list_profiles, load_profile, load_profile_file

__all__ = ["list_profiles", "load_profile", "load_profile_file"]
