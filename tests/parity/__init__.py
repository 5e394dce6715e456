"""Parity with numbers recorded from the published code."""
