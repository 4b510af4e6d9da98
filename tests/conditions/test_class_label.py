import pytest
import torch
from condition_fakes import SHAPE, WIDTH, make_batch

from vdm.conditions.base import ConditionSet
from vdm.conditions.class_label import ClassLabel
from vdm.errors import DataError


def labelled(**extras):
    return make_batch() | {"extras": extras}


@pytest.fixture
def member():
    torch.manual_seed(0)
    condition = ClassLabel(classes=5, width=WIDTH, reads="class", drop_prob=0.5)
    condition.name = "class_label"
    return condition


def test_each_class_has_its_vector_and_none_has_one_too(member):
    count = len(make_batch()["key"])
    numbers = [3, None, *[0] * (count - 2)]
    said = member.encode(labelled(**{"class": numbers}), SHAPE).embed
    assert said.shape == (count, WIDTH)
    assert torch.equal(said[0], member.table.weight[3])
    assert torch.equal(said[1], member.null(1, SHAPE).embed[0])
    assert not torch.equal(said[0], said[2])
    again = member.encode(labelled(**{"class": torch.tensor([4] * count), "class_label": numbers}), SHAPE).embed
    assert torch.equal(again, said), "what is said under its own name comes first"


def test_dropped_clips_hear_what_is_learned_for_no_class(member):
    conditions = ConditionSet(members={"class_label": member}, joint_drop_prob=0.0, joint_keep_prob=0.0)
    batch = labelled(**{"class": [1] * len(make_batch()["key"])})
    dropped = conditions.dropped(batch["key"], 0, 3)["class_label"]
    assert dropped.any()
    assert not dropped.all()
    said = conditions(batch, SHAPE, seed=0, step=3).embed
    assert torch.equal(said, member.table(torch.where(dropped, 5, 1)))
    said.sum().backward()
    assert (member.table.weight.grad.abs().sum(1) > 0).tolist() == [False, True, False, False, False, True]


@pytest.mark.parametrize("wrong", [5, -1, 1.0, "1", True])
def test_no_such_class(member, wrong):
    count = len(make_batch()["key"])
    with pytest.raises(DataError, match="no such class"):
        member.encode(labelled(**{"class": [wrong] * count}), SHAPE)


def test_clips_without_their_class_are_said(member):
    with pytest.raises(DataError, match=r"data\.extras=\[class\]"):
        member.encode(make_batch(), SHAPE)
