"""The sampler: frozen canvases, pure steps, counter-based draws; the network is handed in."""
