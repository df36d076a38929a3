"""Runs of trained models: what they leave, and how a kill is imitated."""

import json

import pytest

from fwm_py.experiments.run_folder import LOG, MODEL, RESULT


def files_of(folder):
    """What a run has written, but for what is time; the log without its seconds."""
    log = [line.split(",") for line in (folder / LOG).read_text().splitlines()]
    result = json.loads((folder / RESULT).read_text())
    del result["seconds"]
    return [[*row[:6], *row[7:]] for row in log], result, (folder / MODEL).read_bytes()


class Stop(Exception):
    pass


def stop_after(train, settings, data, folder, step, resume=False):
    """Train until the log's first row from `step` on; as a kill does, nothing is written after it."""

    def on_log(row):
        if row.step >= step:
            raise Stop

    with pytest.raises(Stop):
        train(settings, data, folder, resume=resume, on_log=on_log)
