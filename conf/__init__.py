"""Hydra's config groups; the dataclasses that check them live in the packages that use them."""
