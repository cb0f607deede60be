"""EAGLE-3: EAGLE's head on states after several layers."""
