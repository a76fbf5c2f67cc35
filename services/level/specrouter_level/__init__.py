"""A level: one model of the family behind the one call, ``Extend``."""
