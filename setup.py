"""Package metadata; nothing heavy is imported, so a build needs no torch."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "normdet/version.py").read_text())[1]
README = ROOT / "README.md"

setup(
    name="normdet",
    version=VERSION,
    description="Any normalization as a flag for detectron2: FRN+TLU, GN+WS, SyncBN and more",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    # The oldest versions with which the quick tests pass: `make test-oldest`.
    python_requires=">=3.10",
    # The configs lie beside the package in the repository and inside it once installed.
    packages=[*find_packages(include=["normdet", "normdet.*"]), "normdet.configs"],
    package_dir={"normdet.configs": "configs"},
    package_data={
        "normdet": ["lab/bench/csrc/*", "ops/csrc/*", "data/nuclei/*"],
        "normdet.configs": ["**/*.yaml", "lazy/*.py"],
    },
    # detectron2 is missing on purpose: PyPI has none under its own name, and a requirement by URL
    # would keep normdet off PyPI and replace the build a user has. tools/install_detectron2.py
    # installs one, or keeps what is there.
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "fvcore>=0.1.5",
        "contourpy>=1.0.5",
        "filelock>=3.30",
        "matplotlib>=3.7",
        "numpy>=1.23.5",
        "pillow>=9.5",
        "psutil>=5.9",
        "pycocotools>=2.0.7",
        "pyyaml>=6.0",
        "rich>=12",
        "safetensors>=0.4.5",
        "tabulate>=0.9",
        "tifffile>=2025.2.18",
    ],
    extras_require={
        "dev": ["pytest", "pytest-timeout", "pytest-xdist", "ruff"],
        "bench": ["timm>=0.9"],
        "eval": ["faster-coco-eval>=1.8"],
        "medical": [
            "h5py>=3.8",
            "highdicom>=0.23",
            "imagecodecs>=2023.9.18",
            "nibabel>=4",
            "pydicom>=3.0.1",
            "pylibjpeg[libjpeg,openjpeg]>=2.0.1",
            "scikit-image>=0.20",
        ],
        "lab": ["scipy>=1.10"],
        "compare": ["scipy>=1.10"],  # the name that lab had
        "export": ["onnx>=1.16", "onnxscript>=0.5", "onnxruntime>=1.18"],
        "ray": ["ray>=2.9"],
        "docs": [
            "furo",
            "ipykernel",
            "myst-nb>=1.3",
            "nbclient",
            "scipy>=1.10",  # the tables' intervals
            "sphinx>=8.1",
            "sphinx-copybutton",
        ],
    },
    entry_points={"console_scripts": ["normdet = normdet.cli:main"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
