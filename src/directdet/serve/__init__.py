"""A detector behind HTTP: pictures are uploaded, and detections or drawn pictures come back."""
