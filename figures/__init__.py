"""Pictures and charts; imports nothing else of this project."""
