"""Published laws and models, and what follows from a law."""
