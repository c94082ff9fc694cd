"""What the three backends share: data, evaluation, configuration and the training loop. Imports no framework."""

import os

__version__ = "0.1.0"

os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**26))  # before anything imports OpenCV, which reads it then
