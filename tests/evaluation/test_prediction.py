"""Tests of the tables of prediction.py."""

from capsnet.evaluation.prediction import cell


def test_no_cell_of_the_table_is_a_formula():
    formulas = "=1+1", "+1", "-1", "@x", "\tx"
    assert [cell(text) for text in formulas] == [
        f"'{text}" for text in formulas
    ]
    plain = "a.png", "a=b", "'x", "", 0.5
    expected = ["a.png", "a=b", "'x", "", "0.500000"]
    assert list(map(cell, plain)) == expected
