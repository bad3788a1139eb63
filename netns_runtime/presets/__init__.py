"""Shipped policies, by name. This version ships none (they come with the L7 rules they need)."""
