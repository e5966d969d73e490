"""Book-keeping of projects, experiments and their runs: plain JSON files with a history. No torch."""
