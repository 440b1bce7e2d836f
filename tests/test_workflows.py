"""What runs on GitHub and before a commit: YAML that parses, and the commands that a developer runs."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.M))


def parsed(path: Path) -> dict[str, Any]:
    tree = yaml.safe_load(path.read_text("utf-8"))
    tree["on"] = tree.pop(True)  # YAML 1.1 reads the key `on` as a boolean
    return tree


def jobs() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{path.stem}.{name}", job)
        for path in WORKFLOWS
        for name, job in parsed(path)["jobs"].items()
    ]


def steps() -> list[tuple[str, dict[str, Any]]]:
    return [(name, step) for name, job in jobs() for step in job.get("steps", [])]


def made(command: str) -> list[str]:
    """The targets of a `make` command; variables are none of them."""
    words = command.split()
    assert words[0] == "make", command
    return [word for word in words[1:] if "=" not in word]


def test_every_command_of_a_workflow_is_a_target_of_make():
    commands = [(name, line) for name, step in steps() for line in step.get("run", "").splitlines()]
    targets: dict[str, set[str]] = {}
    for name, line in commands:
        if line.startswith("gh release create "):  # which a developer does not run
            assert name == "release.release"
            continue
        assert made(line), line
        assert set(made(line)) <= TARGETS, line
        targets.setdefault(name.partition(".")[0], set()).update(made(line))
    assert targets == {
        "ci": {"lint", "test", "coverage", "docs", "wheel", "image"},
        "nightly": {"test-clients"},
        "release": {"release-files"},
    }


def test_the_tests_run_on_every_python_that_setup_cfg_names():
    setup = (ROOT / "setup.cfg").read_text("utf-8")
    named = re.findall(r"Python :: (3\.\d+)$", setup, re.M)
    assert dict(jobs())["ci.test"]["strategy"]["matrix"]["python"] == named
    assert named == ["3.11", "3.12", "3.13", "3.14"]
    assert f"python_requires = >={named[0]}\n" in setup


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_no_more_rights_than_it_needs(path):
    tree = parsed(path)
    assert tree["permissions"] == {"contents": "read"}
    assert "pull_request_target" not in tree["on"]
    more = {name: job["permissions"] for name, job in tree["jobs"].items() if "permissions" in job}
    rights = {"contents": "write", "id-token": "write", "attestations": "write"}
    assert more == ({"release": rights} if path.stem == "release" else {})
    for _, job in jobs():
        assert "timeout-minutes" in job or "uses" in job


def test_dependabot_updates_the_actions_and_nothing_else():
    tree = yaml.safe_load((ROOT / ".github/dependabot.yml").read_text("utf-8"))
    assert [each["package-ecosystem"] for each in tree["updates"]] == ["github-actions"]


def test_actions_are_githubs_own_and_pinned():
    for name, step in steps():
        if "uses" in step:
            assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", step["uses"]), name
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"] == {"persist-credentials": False}, name
        # An expression in a shell line would be code that a branch's name can change.
        assert "${{" not in step.get("run", ""), name


def test_a_release_is_tested_attested_and_published():
    release = parsed(ROOT / ".github/workflows/release.yml")
    assert release["on"] == {"push": {"tags": ["v*"]}}
    ci = release["jobs"]["ci"]["uses"]
    assert parsed(ROOT / ci)["on"].keys() >= {"workflow_call", "pull_request", "push"}
    job = release["jobs"]["release"]
    assert job["needs"] == "ci"
    *_, build, attest, publish = job["steps"]
    assert build["run"].startswith("make release-files ")
    assert attest["uses"].startswith("actions/attest-build-provenance@")
    assert attest["with"] == {"subject-path": "dist/*"}
    assert " dist/* " in publish["run"]


def test_hooks_before_a_commit_are_those_of_make_lint():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    assert repository["repo"] == "local"
    hooks = [hook["entry"].removeprefix(".venv/bin/") for hook in repository["hooks"]]
    recipe = MAKEFILE.partition("\nlint:")[2].partition("\n\n")[0]
    linted = re.findall(r"\$\(BIN\)/(.+)", recipe)
    assert hooks == [line.removesuffix(" .") for line in linted]


def test_every_target_is_phony_and_all_but_one_are_explained():
    phony = set(re.search(r"^\.PHONY: (.+)$", MAKEFILE, re.M)[1].split())
    assert phony == TARGETS
    explained = set(re.findall(r"^([a-z-]+):.*## \S", MAKEFILE, re.M))
    assert TARGETS - explained == {"release-files", "lock-bench", "lock-docs", "lock-clients"}


def test_templates_are_forms_that_github_reads():
    folder = ROOT / ".github/ISSUE_TEMPLATE"
    for path in folder.glob("*.yml"):
        tree = yaml.safe_load(path.read_text("utf-8"))
        if path.stem == "config":
            assert tree == {"blank_issues_enabled": True}
            continue
        assert {"name", "description", "body"} <= tree.keys()
        ids = [item["id"] for item in tree["body"] if item["type"] != "markdown"]
        assert len(ids) == len(set(ids))
        for item in tree["body"]:
            assert item["type"] in ("markdown", "textarea", "input")
            assert item["attributes"].keys() & {"label", "value"}
    assert len(list(folder.glob("*.yml"))) == 3
