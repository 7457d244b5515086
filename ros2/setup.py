"""The package as colcon builds it; pyproject.toml is not yet read by ament_python."""

from pathlib import Path

from setuptools import setup

NAME = "pairvpr_ros"
CONFIGS = sorted(f"config/{path.name}" for path in (Path(__file__).parent / "config").glob("*.yaml"))

setup(
    name=NAME,
    version="0.2.0",
    description="Visual place recognition with Pair-VPR as a ROS 2 node",
    license="Apache-2.0",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", ["launch/visual_localization.launch.py"]),
        (f"share/{NAME}/config", CONFIGS),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    entry_points={"console_scripts": [f"visual_localization = {NAME}.main:main"]},
)
