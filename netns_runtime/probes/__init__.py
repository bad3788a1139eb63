"""The probe: cgroup hooks that refuse, count and explain direct connects, and how they are read."""
