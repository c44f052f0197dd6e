"""What is not collected here: SB3's own tests are run in a folder of their own, with settings from the environment."""

collect_ignore = ["sb3_suite/substitute.py"]
