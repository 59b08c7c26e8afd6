"""The look-up of known vulnerabilities, on a small database."""

import json
import sys

import pytest

from image import audit

ADVISORY = """
id: PYSEC-2099-1
aliases: [CVE-2099-1]
affected:
- package: {name: fox}
  ranges:
  - {type: GIT, events: [{introduced: "0"}]}
  - type: ECOSYSTEM
    events: [{introduced: "1.0"}, {fixed: "1.5"}, {introduced: "2.0"}, {last_affected: "2.3"}]
  versions: ["9.9"]
"""


@pytest.fixture
def found(tmp_path, monkeypatch, capsys):
    """What the program prints for a lock file with this version, and its status."""
    (tmp_path / "vulns/fox").mkdir(parents=True)
    (tmp_path / "vulns/fox/PYSEC-2099-1.yaml").write_text(ADVISORY)
    monkeypatch.setattr(audit, "HERE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["audit.py", "--database", str(tmp_path)])

    def run(version, lock="worker", exceptions=()):
        known = {"upstreams_own_pins": ["a1111"], "exceptions": list(exceptions)}
        (tmp_path / "advisories.json").write_text(json.dumps(known))
        (tmp_path / f"{lock}.lock").write_text(f"Fox=={version} \\\n    --hash=sha256:0\n")
        return audit.main(), capsys.readouterr().out

    return run


@pytest.mark.parametrize("version", ["1.0", "1.4.9", "2.0", "2.3", "9.9"])
def test_an_affected_version_is_an_error_with_all_of_its_names(found, version):
    status, text = found(version)
    assert status == 1
    assert f"::error::worker.lock: fox {version}: CVE-2099-1, PYSEC-2099-1" in text


@pytest.mark.parametrize("version", ["0.9", "1.5", "1.9", "2.4"])
def test_another_version_is_none(found, version):
    assert found(version) == (0, "worker.lock: 1 packages, 0 findings without a decision\n")


def test_a_decision_is_for_one_package_in_one_version_and_lock(found):
    decided = {"id": "CVE-2099-1", "package": "fox", "version": "1.1", "locks": ["worker"]}
    assert found("1.1", exceptions=[decided])[0] == 0
    for other in ({"package": "cat"}, {"version": "1.0"}, {"locks": ["embedded"]}, {"id": "CVE-1"}):
        assert found("1.1", exceptions=[decided | other])[0] == 1


def test_a_new_finding_in_a1111s_own_pins_is_a_warning(found):
    status, text = found("1.1", "a1111")
    assert (status, "::warning::a1111.lock: fox 1.1" in text) == (0, True)


@pytest.mark.parametrize(
    "answer",
    [
        "not JSON",
        '{"dependencies": []}',
        '{"dependencies": [{"name": "fox", "skip_reason": "Dependency not found on PyPI"}]}',
    ],
)
def test_a_package_that_was_not_looked_up_is_no_good_package(tmp_path, monkeypatch, answer):
    """Else an unreachable PyPI would look as if there were no vulnerability."""
    (tmp_path / "a.lock").write_text("fox==1.0\n")
    monkeypatch.setattr(audit, "PROGRAM", [sys.executable, "-c", f"print({answer!r})"])
    with pytest.raises(SystemExit, match=r"a\.lock: "):
        list(audit.by_pip_audit(tmp_path / "a.lock"))


def test_each_decision_is_about_a_version_that_is_locked_and_has_a_reason_and_a_date():
    locked = {lock.stem: audit.pins(lock) for lock in audit.HERE.glob("*.lock")}
    known = json.loads((audit.HERE / "advisories.json").read_text())
    assert locked.keys() >= set(known["upstreams_own_pins"])
    for one in known["exceptions"]:
        assert len(one["reason"]) > 10
        assert one["decided"].count("-") == 2
        assert {locked[lock][one["package"]] for lock in one["locks"]} == {one["version"]}
