"""Starview's jobs against real local services: for `make demo`, tests and bench."""
