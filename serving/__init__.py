"""The page and the API on which people ask a model, with gradio. Nothing is sent to other machines."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported
