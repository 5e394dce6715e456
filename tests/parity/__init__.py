"""Test parity with numbers recorded from the published code."""
