"""Adaptations to optional libraries."""
