from edgeline.pipeline.data.connected import connected


def test_all_that_is_connected_has_the_smallest_as_its_name() -> None:
    find = connected([("d", "c"), ("b", "c"), ("x", "y"), ("a", "d")])
    assert [find(name) for name in "abcdxyz"] == ["a", "a", "a", "a", "x", "x", "z"]


def test_a_chain_of_any_length_is_one_group() -> None:
    find = connected((number, number + 1) for number in range(20_000, 0, -1))
    assert find(20_001) == 1
