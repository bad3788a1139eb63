"""Runs a command in a network namespace whose only way out is a policy proxy."""

__version__ = "0.1.0"
