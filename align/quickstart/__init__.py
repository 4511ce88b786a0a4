"""The embedded main job: a small world, simulated people, and the whole loop on them."""
