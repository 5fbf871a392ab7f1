"""Batches of conversations about real photographs, made by hand."""

from __future__ import annotations

import torch

from trainer.conversations.conversation import Conversation, Mark, Target, Text, Turn
from trainer.data.batch import ConversationBatch, PairBatch
from trainer.model.prompts import IMAGE_TOKENS, Prompts
from trainer.model.rows import IGNORE, TokenRow

CONVERSATIONS = (
    Conversation(
        "referring",
        (
            Turn((Mark.PICTURES, "\nPlease segment the left eye in this image."), ("It is ", Mark.SEG, ".")),
            Turn(("Please segment the zebra in this image.",), ("Sure, ", Mark.SEG, ".")),
        ),
        frames=(0, 1),
        targets=(Target((0,), "The left eye."), Target((), "the zebra")),
    ),
    Conversation("chat", (Turn((Mark.PICTURES, "\nWhat is this?"), ("A man.",)),), frames=(0,)),
    Conversation("chat", (Turn(("Who are you?",), ("Sa2VA.",)), Turn(("Since when?",), ("2025.",)))),
    Conversation(
        "referring",
        (Turn((Mark.PICTURES, "\nPlease segment the zebra in this image."), ("There is no zebra.",)),),
        frames=(0,),
    ),
    Conversation(
        "regions",
        (
            Turn((Mark.PICTURES, "\nregion1", Mark.REGION, " What is region1?"), ("An eye.",)),
            Turn(("And region2", Mark.REGION, "?"), ("The same.",)),
        ),
        frames=(0,),
        regions=(0, 0),
    ),
    Conversation(
        "describe", (Turn((Mark.PICTURES, "\nregion1", Mark.REGION, " Describe."), ("a helmet",)),), (1,), regions=(0,)
    ),
    Conversation(
        "grounded_caption",
        (
            Turn(
                (Mark.PICTURES, "\nDescribe the picture."),
                ("A man in ", Mark.PHRASE_START, " a helmet ", Mark.PHRASE_END, " ", Mark.SEG, "."),
            ),
        ),
        frames=(1,),
        targets=(Target((0,), "a helmet"),),
    ),
)
"""About the objects of two samples with two frames and one object each."""
SAMPLES = (0, 0, 1, 1, 0, 1, 1)
"""The sample of each conversation."""


def letters(prompts: Prompts, text: Text, cells: list[int], frames: int) -> str:
    """A text with the strings of its marks; takes the cells of its regions off `cells`."""
    image = "<img>" + "<IMG_CONTEXT>" * IMAGE_TOKENS + "</img>"
    out = ""
    for piece in text:
        if piece is Mark.PICTURES:
            out += "\n".join([image] * frames)
        elif piece is Mark.REGION:
            out += "<vp>" + "<IMG_CONTEXT>" * cells.pop(0) + "</vp>"
        else:
            out += piece if isinstance(piece, str) else piece.value
    return out


def token_row(prompts: Prompts, talk: Conversation, cells: list[int]) -> TokenRow:
    """Encode a conversation whose letters spell no mark."""
    ids = [*prompts.start]
    labels = [IGNORE] * len(ids)
    template = prompts.template
    rest = [*cells]
    for turn in talk.turns:
        question = letters(prompts, turn.question, rest, len(talk.frames))
        asked = prompts.encode(template.before + question + template.after)
        answer = prompts.encode(letters(prompts, turn.answer, rest, 0) + template.end)
        separator = prompts.encode("\n")
        ids += asked + answer + separator
        labels += [IGNORE] * len(asked) + answer + [IGNORE] * len(separator)
    return TokenRow("pair", ids, labels, [False] * len(ids))


def conversation_batch(
    pair: PairBatch, prompts: Prompts, chosen: tuple[int, ...] = tuple(range(len(CONVERSATIONS)))
) -> ConversationBatch:
    """The conversations `chosen` of `CONVERSATIONS` about the two samples of a batch with one object each."""
    pixels = []
    images = []
    rows = []
    sam_pixels = []
    masks = []
    seg_of_mask = []
    picture_of_mask = []
    segs = 0
    regions = torch.zeros(len(chosen), 2, 16, 16, dtype=torch.bool)
    image_of_row = torch.full((len(chosen), 2), -1)
    for number, talk_number in enumerate(chosen):
        talk = CONVERSATIONS[talk_number]
        sample = SAMPLES[talk_number]
        for slot, frame in enumerate(talk.frames):
            if (sample, frame) not in images:
                images.append((sample, frame))
                pixels.append(pair.frames[frame].pixel_values[sample])
            image_of_row[number, slot] = images.index((sample, frame))
            if talk.targets:
                sam_pixels.append(pair.frames[frame].g_pixel_values[sample])
            for k, target in enumerate(talk.targets):
                mask = pair.frames[frame].masks[sample]
                masks.append(mask if target.objects else torch.zeros_like(mask))
                seg_of_mask.append(segs + k)
                picture_of_mask.append(len(sam_pixels) - 1)
        segs += len(talk.targets)
        cells = []
        for slot in range(len(talk.regions)):
            regions[number, slot] = pair.frames[talk.frames[-1]].prompt_masks[sample]
            cells.append(int(regions[number, slot].sum()))
        rows.append(token_row(prompts, talk, cells))
    return ConversationBatch(
        keys=pair.keys,
        recipe=pair.recipe,
        meta=pair.meta,
        copies=[0, 0],
        conversations=[CONVERSATIONS[number] for number in chosen],
        rows=rows,
        sample_of_row=[SAMPLES[number] for number in chosen],
        pixel_values=torch.stack(pixels) if pixels else None,
        image_of_row=image_of_row,
        regions=regions,
        g_pixel_values=torch.stack(sam_pixels) if sam_pixels else None,
        masks=torch.stack(masks) if masks else None,
        seg_of_mask=torch.tensor(seg_of_mask, dtype=torch.int64),
        picture_of_mask=torch.tensor(picture_of_mask, dtype=torch.int64),
    )


def about_objects(pair: PairBatch, prompts: Prompts, kind: str) -> ConversationBatch:
    """Conversations of kind segment or describe about the first text of each object, in frame 1.

    Of kind segment a row has a turn for each object of a sample; of kind describe each object has a row.
    """
    images = pair.image_of_object.tolist()
    frame = pair.frames[0]
    talks = []
    if kind == "segment":
        for sample in range(len(pair.keys)):
            phrases = [texts[0] for texts, image in zip(pair.texts, images, strict=True) if image == sample]
            turns = [Turn((f"Please segment {text} in this image.",), ("It is ", Mark.SEG, ".")) for text in phrases]
            turns[0] = Turn((Mark.PICTURES, "\n", *turns[0].question), turns[0].answer)
            talks.append(Conversation(kind, tuple(turns), (0,), tuple(Target((0,), text) for text in phrases)))
    else:
        for texts in pair.texts:
            turn = Turn((Mark.PICTURES, "\nregion1", Mark.REGION, " Describe."), (texts[0],))
            talks.append(Conversation(kind, (turn,), (0,), regions=(0,)))
    samples = [*range(len(pair.keys))] if kind == "segment" else images
    asks = kind == "segment"
    regions = torch.zeros(len(talks), 0, 16, 16, dtype=torch.bool) if asks else frame.prompt_masks[:, None]
    cells = regions.flatten(2).sum(2).tolist()
    nothing = torch.zeros(0, dtype=torch.int64)
    return ConversationBatch(
        keys=pair.keys,
        recipe=pair.recipe,
        meta=pair.meta,
        copies=pair.copies,
        conversations=talks,
        rows=[token_row(prompts, talk, own) for talk, own in zip(talks, cells, strict=True)],
        sample_of_row=samples,
        pixel_values=frame.pixel_values,
        image_of_row=torch.tensor(samples)[:, None],
        regions=regions,
        g_pixel_values=frame.g_pixel_values if asks else None,
        masks=frame.masks if asks else None,
        seg_of_mask=torch.arange(len(images)) if asks else nothing,
        picture_of_mask=pair.image_of_object if asks else nothing,
    )
