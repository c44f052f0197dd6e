"""One small class per published system."""
