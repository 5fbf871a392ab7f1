"""Regions are shown, and answered with a text of their object."""

from tests.trainer.conversations.samples import check, make, objects, sample, written


def test_a_row_shows_one_region_in_a_frame_that_has_cells_of_it():
    of = sample({"objects": objects(" A dog. ", ["x", "y"], [])}, cells=[[0, 4, 4], [0, 0, 4], [7, 4, 4]])
    seen = []
    for epoch in range(2):
        rows, notes = make(of, epoch, kind="describe", phrases=1)
        assert notes == {"descriptions": 1}
        check(rows[0], of)
        seen += [(row.regions, row.frames, written(row)[0][1]) for row in rows]
    assert {regions for regions, _, _ in seen} == {(0,), (1,)}
    assert ((0,), (2,), "A dog.") in seen
    assert written(rows[0])[0][0] == (
        "«<image>»\nThere are 1 part regions in the picture: region1«<vp>».\n"
        "Please generate a detailed description for the given image region."
    )


def test_each_object_has_a_row_of_its_own():
    of = sample({"objects": objects("x", "y", "z")})
    rows, notes = make(of, kind="describe", phrases=2)
    assert len(rows) == 2 == notes["descriptions"] and len({row.regions for row in rows}) == 2
    rows, notes = make(sample({"objects": objects([])}), kind="describe")
    assert rows == [] and notes == {"samples without a conversation of kind describe": 1}
