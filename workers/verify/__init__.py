"""Plans applied to the whole model and measured."""
