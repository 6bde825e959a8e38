"""Parts of the bundled demo scene's generator; see tools/render_demo_scene.py."""
