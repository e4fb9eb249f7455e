import pytest

from supple.errors import InputError
from supple.intervals import half_width95, t975


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (30, 2.042), (31, 2.0395), (60, 2.0003)],
)
def test_quantiles_are_those_of_the_tables(freedom, quantile):
    assert t975(freedom) == pytest.approx(quantile, abs=6e-4)


def test_a_single_value_has_no_quantile():
    with pytest.raises(InputError, match="1 degree of freedom, got 0"):
        t975(0)


def test_half_width_by_hand():
    assert half_width95(3.0, 9) == pytest.approx(2.3060)
    assert half_width95(3.0, 1) == 0
