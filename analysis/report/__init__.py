"""What a fit shows: one page to explore, figures and tables for a paper."""
