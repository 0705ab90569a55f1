"""What `engine.py` measures, by topic: each function fills the section of one row."""
