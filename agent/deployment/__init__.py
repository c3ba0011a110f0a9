"""Deployments: the lifecycle's table, who drives it, and what each phase does on this device."""
