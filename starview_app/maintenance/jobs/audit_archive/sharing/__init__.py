"""The archive's work shared among processes."""
