"""Prediction with a Sa2VA model: pictures, regions and videos in; answers and masks at the original size out."""
