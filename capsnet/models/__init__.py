"""The networks around the capsules, and their files."""
