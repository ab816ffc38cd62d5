"""What sets one family of models apart from another: a folder each, one value in it, and a registry by model_type."""
