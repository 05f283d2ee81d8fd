"""The rooms of the repository's top level are installed under the one import name `directdet`."""

from setuptools import setup

ROOMS = ("models", "data", "train", "export", "infer")

setup(
    packages=["directdet", *(f"directdet.{room}" for room in ROOMS)],
    package_dir={"directdet": "directdet", **{f"directdet.{room}": room for room in ROOMS}},
)
