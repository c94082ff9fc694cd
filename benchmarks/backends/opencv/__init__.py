"""Loops without a framework."""
