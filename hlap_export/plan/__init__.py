"""Plans: which layers lose attention, and each layer's alpha."""
