"""Shares the work of an archive run among processes."""
