"""The record in a model's file holds what one may hold, or is refused."""

import json

import pytest
from model_files import capsnet, members_of, message_of, write_members

from capsnet.cli.checks import flags_of, parse_args
from capsnet.models.records import check_record
from capsnet.models.saving import load_model, save_model

WRONG = """
{"flags": {"dataset": ["a"]}}
{"flags": {"dataset": 1}}
{"flags": {"seed": "x"}}
{"flags": {"seed": -1}}
{"flags": {"seed": null}}
{"flags": {"seed": true}}
{"flags": {"image_size": 5}}
{"flags": {"image_size": ["a", "b"]}}
{"flags": {"image_size": [-1, 5]}}
{"flags": {"image_size": [5]}}
{"flags": {"image_size": [17, 100000]}}
{"flags": {"grayscale": "no"}}
{"flags": {"test_fraction": 1.5}}
{"flags": {"test_fraction": 0}}
{"flags": {"model": "resnet"}}
{"flags": {"model": ["capsnet"]}}
{"flags": {"routing": 3}}
{"flags": {"routings": 10000000}}
{"flags": {"routings": 2.5}}
{"flags": {"primary_scale": "x"}}
{"flags": {"primary_scale": NaN}}
{"flags": {"capsule_bias": Infinity}}
{"flags": {"conv_kernel": "x"}}
{"flags": {"conv_kernel": [3, 3, 3]}}
{"flags": {"conv_strides": 0}}
{"flags": {"dtype_policy": "foo"}}
{"flags": {"lam_recon": [1]}}
{"flags": {"lam_recon": "x"}}
{"flags": 5}
{"flags": null}
{"class_names": 5}
{"class_names": ["a", 1]}
{"labels": "pairs"}
{"labels": {}}
[]
null
""".strip().splitlines()


@pytest.mark.parametrize("text", WRONG)
def test_what_no_record_holds_is_refused_in_one_line(text):
    message = message_of(check_record, json.loads(text), "model.keras")
    assert "the record in 'model.keras' has" in message
    assert "expected a model that capsulenet.py saved" in message


@pytest.mark.parametrize(
    "line",
    (
        "",
        "--model efficient --lam_recon 0",
        "--model baseline --test_fraction 0.3 --image_size 17 20",
        "--recipe paper --capsule_bias 0.2 --conv_kernel 5",
        "--routing attention --dataset pairs:digits --lam_recon 0.5",
    ),
)
def test_flags_of_every_run_are_what_a_record_may_hold(line):
    flags = json.loads(json.dumps(flags_of(parse_args(line.split()))))
    record = {"flags": flags, "class_names": ["a", "b"], "labels": "pair"}
    check_record(record, "model.keras")
    # Of an older run, and of a newer one.
    older = {"flags": {"conv_kernel": [9, 5], "routing": None}}
    for known in ({}, older, {"flags": {"another": {}}, "class_names": None}):
        check_record(known, "model.keras")


def test_record_is_checked_where_a_model_is_loaded(tmp_path):
    path = str(tmp_path / "model.keras")
    save_model(capsnet(seed=1), path, {"flags": {"seed": 3}})
    members = members_of(path)
    for content, expected in (
        (b'{"flags": {"seed": "x"}}', "has seed 'x', which cannot be"),
        (b"{", "cannot load"),
    ):
        members["run.json"] = content
        write_members(path, members)
        assert expected in message_of(load_model, path)
