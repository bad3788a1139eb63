"""Puts the C sources of bpf/ into the wheel as `netns_runtime/bpf`; pyproject.toml has the rest."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["netns_runtime*"]), "netns_runtime.bpf"],
    package_dir={"netns_runtime.bpf": "bpf"},
    package_data={
        "netns_runtime": ["py.typed"],
        "netns_runtime.bpf": ["*.c", "*.h", "README.md"],
        "netns_runtime.presets": ["*.yaml"],
    },
)
