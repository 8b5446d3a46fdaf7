"""Every source of runs, brought to two tables: points and curves."""
