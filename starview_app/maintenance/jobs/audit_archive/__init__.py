"""The audit archive: old audit rows are moved to a store, verified and restored."""
