"""What runs say: ingest, the three approaches, intervals, laws."""
