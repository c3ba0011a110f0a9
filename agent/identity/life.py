"""A certificate's life, and when in it a device renews: a pure decision over times in seconds since 1970."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Life:
    """When a certificate begins and ends."""

    begins: float
    ends: float

    @property
    def renew_at(self) -> float:
        """Two thirds into it: a third is left to try again in."""
        return self.begins + (self.ends - self.begins) * 2 / 3

    @property
    def rest_s(self) -> float:
        """How long to let a new certificate be, whatever the clock says: one far ahead has every certificate due."""
        return (self.ends - self.begins) / 12
