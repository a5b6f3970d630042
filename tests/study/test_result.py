"""The shape of a study's result: it survives JSON, and what does not fit together is refused."""

import pytest
from pydantic import ValidationError

from plad_ray.study.result import Axis, Column, Figure, Interval, Series, StudyResult, Table


def test_a_result_survives_json():
    table = Table(
        key="t",
        title="T",
        columns=(Column(key="arm", label="", unit="text"), Column(key="win", label="win", unit="percent")),
        rows=(("plad", Interval(mean=0.5, low=0.4, high=0.6, n=7)), ("seqkd", None), ("sft", 3), ("kd", 0.25)),
    )
    figure = Figure(key="f", title="F", x=Axis(label="n", log=True), y=Axis(label="win"), series=(
        Series(name="plad", x=(1, 2), y=(0.4, 0.5), low=(0.3, 0.4), high=(0.5, 0.6)),
    ))  # fmt: skip
    result = StudyResult(study="s", name="demo", title="S", summary=("so",), tables=(table,), figures=(figure,))
    again = StudyResult.model_validate_json(result.model_dump_json())
    assert again == result
    assert again.tables[0].column("win") == [Interval(mean=0.5, low=0.4, high=0.6, n=7), None, 3, 0.25]
    assert isinstance(again.tables[0].rows[2][1], int)


def test_ragged_tables_and_series_are_refused():
    with pytest.raises(ValidationError, match="table t: 2 cells in a row of 1 columns"):
        Table(key="t", title="", columns=(Column(key="a", label=""),), rows=((1, 2),))
    with pytest.raises(ValidationError, match="series s: 1 low for 2 x"):
        Series(name="s", x=(1, 2), y=(1, 2), low=(0,))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_cannot_hold_is_refused(value):
    with pytest.raises(ValidationError):
        Interval(mean=0.5, low=value, high=1)
    with pytest.raises(ValidationError):
        Table(key="t", title="", columns=(Column(key="a", label=""),), rows=((value,),))
    with pytest.raises(ValidationError):
        Series(name="s", x=(1,), y=(value,))
