"""What the terminal shows, and the plan's page."""
