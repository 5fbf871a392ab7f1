"""Questions and answers that Sa2VA is trained on, to the letter, and refusals of our own."""

from __future__ import annotations

QUESTIONS = (
    "Can you segment the {phrase} in this image?",
    "Please segment {phrase} in this image.",
    "What is {phrase} in this image? Please respond with segmentation mask.",
    "What is {phrase} in this image? Please output segmentation mask.",
    "Can you segment the {phrase} in this image?",
    "Please segment {phrase} in this image.",
    "What is {phrase} in this image? Please respond with segmentation mask?",
    "What is {phrase} in this image? Please output segmentation mask?",
    "Could you provide a segmentation mask for the {phrase} in this image?",
    "Please identify and segment the {phrase} in this image.",
    "Where is the {phrase} in this picture? Please respond with a segmentation mask.",
    "Can you highlight the {phrase} in this image with a segmentation mask?",
    "Could you provide a segmentation mask for the {phrase} in this image?",
    "Please identify and segment the {phrase} in this image.",
    "Where is the {phrase} in this picture? Please respond with a segmentation mask.",
    "Can you highlight the {phrase} in this image with a segmentation mask?",
)
"""Ask for the mask of a phrase. Those that stand twice are drawn twice as often."""
ANSWERS = (
    "It is [SEG].",
    "Sure, [SEG].",
    "Sure, it is [SEG].",
    "Sure, the segmentation result is [SEG].",
    "[SEG].",
)
"""Give a mask. `[SEG]` is the mark."""
REFUSALS = (
    "Nothing in this image fits that description.",
    "I cannot find it in this image.",
    "There is no such object in this image.",
    "It is not in this image, so there is nothing to segment.",
)
"""Answer a phrase that means nothing in the picture. Sa2VA's own training has no such answer."""
WITH_A_MASK = " Please respond with segmentation mask."
"""Follows a sentence that is no question."""
GROUNDED_CAPTION_QUESTIONS = (
    "Could you please give me a detailed description of the image? Please respond with interleaved segmentation masks "
    "for the corresponding parts of the answer.",
    "Can you provide a thorough description of this image? Please output with interleaved segmentation masks for the "
    "corresponding phrases.",
    "Please describe in detail the contents of the image. Please respond with interleaved segmentation masks for the "
    "corresponding parts of the answer.",
    "Could you give a comprehensive explanation of what can be found within this picture? Please output with "
    "interleaved segmentation masks for the corresponding phrases.",
    "Could you give me an elaborate explanation of this picture? Please respond with interleaved segmentation masks "
    "for the corresponding phrases.",
    "Could you provide me with a detailed analysis of this photo? Please output with interleaved segmentation masks "
    "for the corresponding parts of the answer.",
)
"""Ask for a caption whose phrases have masks."""
REGION_QUESTIONS = (
    "Can you provide me with a detailed description of the region in the picture marked by {region}?",
    "I'm curious about the region represented by {region} in the picture. Could you describe it in detail?",
    "What can you tell me about the region indicated by {region} in the image?",
    "What details can you give me about the region outlined by {region} in the photo?",
    "Please provide me with a comprehensive description of the region marked with {region} in the image.",
    "Can you give me a detailed account of the region labeled as {region} in the picture?",
    "I'm interested in learning more about the region represented by {region} in the photo. Can you describe it in "
    "detail?",
    "What is the region outlined by {region} in the picture like? Could you give me a detailed description?",
    "Please describe the region {region} in the image in detail.",
    "Can you offer a thorough analysis of the region {region} in the image?",
    "Could you elaborate on the region highlighted by {region} in the picture provided?",
    "Please share more information about the zone emphasized with {region} in the photo.",
    "What insights can you give about the area denoted by {region} in the image presented?",
    "Can you share a comprehensive rundown of the region denoted by {region} in the presented image?",
    "I'd like to know more about the region highlighted by {region} in the picture provided.",
    "Work through the important details of the area {region} in the image.",
    "Illustrate the area represented by {region} through a descriptive explanation.",
    "Examine the region {region} closely and share its details.",
)
"""Ask for a description of a region by its name, such as `region1`."""
IN_A_WORD = " Answer the question using a single word or phrase."
"""Follows the questions of datasets whose answers are short."""
DESCRIBE = "Please generate a detailed description for the given image region."
"""Asks for the text of the only region of a row."""


def normalise_phrase(text: str) -> str:
    """Return `text` in lower case without surrounding space and without one final full stop."""
    return text.strip().lower().removesuffix(".")
