"""Runs Stable-Baselines3's own tests on the classes of this package."""

from pathlib import Path

substitute_path = Path(__file__).with_name("substitute.py")
