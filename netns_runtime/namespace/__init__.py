"""Namespaces, links, cgroups, and the way CMD is put into them."""
