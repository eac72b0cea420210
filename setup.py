"""What pyproject.toml has no word for: configs/ is in the wheel as slimvit_jax/configs."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["slimvit_jax*"]), "slimvit_jax.configs"],
    package_dir={"slimvit_jax.configs": "configs"},
)
