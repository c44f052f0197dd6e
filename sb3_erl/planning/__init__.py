"""Planning of actions in a model or simulator by the cross-entropy method."""
