"""What a sweep will train: designs, recipes, costs and forecasts, resolved into a plan before anything starts."""
