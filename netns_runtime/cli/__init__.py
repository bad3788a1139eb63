"""The two commands: netns-run and netns-debug."""
