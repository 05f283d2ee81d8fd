"""Reading and writing video files: with PyAV where it is installed, else with OpenCV."""
