"""Files of a current torch and numpy are read; what A1111 forbids stays forbidden."""

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from a1111_worker import pickles
from a1111_worker.expect import NotAsExpected


def test_the_members_that_torch_writes_are_accepted(a1111):
    file = io.BytesIO()
    torch.save({"x": torch.ones(2)}, file)
    names = zipfile.ZipFile(file).namelist()
    with pytest.raises(ValueError, match="bad file"):
        a1111.safe.check_zip_filenames("x.pt", names)
    pickles.allow_new_members(a1111.safe)
    a1111.safe.check_zip_filenames("x.pt", names)


BAD_NAMES = [
    *("a/code/x.py", "byteorder", "a/b/byteorder", "a/byteorder/x", "a/byteorder\n"),
    *("a/xdata/serialization_id", "a/.data/x", "a/constants.pkl", "a/data/x", "a/.format_versions"),
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_other_members_are_refused(a1111, name):
    pickles.allow_new_members(a1111.safe)
    with pytest.raises(ValueError, match="bad file"):
        a1111.safe.check_zip_filenames("x.pt", [name])


def test_numpy_2_is_known_by_both_names(a1111):
    pickles.allow_new_names(a1111.safe)
    find = a1111.safe.RestrictedUnpickler(io.BytesIO()).find_class
    assert find("numpy._core.multiarray", "scalar") == find("numpy.core.multiarray", "scalar")


@pytest.mark.parametrize("forbidden", [print, np.load, pickle.loads])
def test_other_functions_are_refused(a1111, forbidden):
    pickles.allow_new_names(a1111.safe)
    with pytest.raises(ValueError, match="forbidden"):
        a1111.safe.RestrictedUnpickler(io.BytesIO(pickle.dumps(forbidden))).load()


def test_another_check_is_left_alone(a1111):
    own = a1111.safe.allowed_zip_names_re = {"version"}
    a1111.safe.RestrictedUnpickler.find_class = lambda self, module, name: None
    for change in (pickles.allow_new_members, pickles.allow_new_names):
        with pytest.raises(NotAsExpected):
            change(a1111.safe)
    assert a1111.safe.allowed_zip_names_re is own
