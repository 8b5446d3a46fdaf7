"""Examples of programs that keep the run-folder contract."""
