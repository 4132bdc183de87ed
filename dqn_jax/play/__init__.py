"""Using what was trained: policies loaded, played and drawn. Nothing here needs the training's devices or state."""
