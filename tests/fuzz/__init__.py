"""Damaged and hostile inputs, made from a small layout of every source, and what the product does with them.

    python -m tests.fuzz --minutes 5              as many inputs as fit in the time
    python -m tests.fuzz --inputs 10000 --jobs 2  so many
    python -m tests.fuzz --only coco:0:17 --keep DIR   input 17 of seed 0 once more; its files and output stay in DIR

`values` draws nasty values, `mutate` damages a layout, `judge` runs the product on it in a forked process with bounds
on time and memory and says what it did wrong, `run` counts.
"""
