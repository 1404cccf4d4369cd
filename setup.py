"""Packaging; `pip install -e .` for users, `pip install -e .[test]` for developers."""

import pathlib

import setuptools

here = pathlib.Path(__file__).parent
requirements = [line for line in (here / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]

setuptools.setup(
    name="jepa_jax",
    version="0.1.0",
    description="V-JEPA 2 in JAX and Flax: pretraining on video, for TPU and GPU pods and for laptops",
    packages=setuptools.find_packages(include=["jepa_jax", "jepa_jax.*"]),
    python_requires=">=3.11",
    install_requires=requirements,
    extras_require={
        "cuda": ["jax[cuda13]>=0.10.2,<0.13"],
        "tpu": ["jax[tpu]>=0.10.2,<0.13"],
        "test": ["chex>=0.1.90", "pytest>=8", "pytest-xdist>=3.6"],
        # To read official .pt files; every other format needs no PyTorch.
        "torch": ["torch>=2.6"],
        # What tests and benchmarks compare with. This PyTorch has CPU wheels of ordinary size.
        "peers": ["torch==2.13.0", "transformers>=5.20,<6"],
    },
)
