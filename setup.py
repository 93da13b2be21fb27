"""Builds the C extension with the package; everything else stands in pyproject.toml, which has no place for it."""

from setuptools import setup

setup(cffi_modules=["kdbusfs/native/build_native.py:ffibuilder"])
