"""What the four commands of the audit archive share."""
