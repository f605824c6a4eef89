"""Bit-widths of weights and activations: searched, trained for, packed."""
