"""Who this device is: enrolment, its key and certificate, and the end of it."""
