"""What `launch.bench` measures, a function a row."""
