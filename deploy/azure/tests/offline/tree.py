"""A copy of deploy/azure in which Terraform runs, so that it leaves nothing in the repository."""

import json
import os
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.dirname(os.path.dirname(HERE))

MODULES = ["modules/cloud-init", "modules/databricks", "modules/network", "modules/router"]
EXAMPLES = ["examples/everything-new", "examples/existing-hub", "examples/router-only"]


class Failure(Exception):
    """What a check found."""


class Skip(Exception):
    """Why a check cannot be made here."""


def ensure(condition, text):
    if not condition:
        raise Failure(text)


class Tree:
    """The copy, and how Terraform runs in it."""

    def __init__(self, folder, reattach):
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(SOURCE, folder)
        self.environment = {
            **os.environ,
            "TF_REATTACH_PROVIDERS": reattach,
            # Nothing of this machine's own: its settings, variables, and questions about versions.
            "TF_CLI_CONFIG_FILE": os.devnull,
            "CHECKPOINT_DISABLE": "1",
            "TF_IN_AUTOMATION": "1",
        }
        for name in [name for name in self.environment if name.startswith("TF_VAR_")]:
            del self.environment[name]

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    def terraform(self, place, *arguments):
        """Runs a command of Terraform in a directory. Returns whether it succeeded, and its words."""
        command = [sys.executable, os.path.join(HERE, "terraform.py"), *arguments]
        done = subprocess.run(
            command,
            cwd=self.path(place),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode == 0, done.stdout

    def init(self, place):
        if not os.path.exists(self.path(place, ".terraform")):
            good, words = self.terraform(place, "init", "-no-color")
            ensure(good or "Terraform has been successfully initialized" in words, words)

    def validate(self, place):
        """Returns whether a directory is valid, and Terraform's words about it."""
        # A module without modules and providers needs no init, and has nothing to show for it.
        self.init(place)
        return self.terraform(place, "validate", "-no-color")

    def test(self, *files, verbose=False):
        """Runs test files. Returns (file, run, passed, words) of each run, and the states of those
        that were applied, by file and run."""
        self.init(".")
        arguments = ["test", "-json", *(["-verbose"] if verbose else [])]
        arguments += [f"-filter=tests/{file}" for file in files]
        _, words = self.terraform(".", *arguments)
        runs, states, said = [], {}, {}
        for line in words.splitlines():
            try:
                message = json.loads(line)
            except ValueError:
                continue
            where = (message.get("@testfile"), message.get("@testrun"))
            if message.get("@level") == "error":
                diagnostic = message.get("diagnostic", {})
                text = ": ".join(filter(None, (diagnostic.get("summary"), diagnostic.get("detail"))))
                said.setdefault(where, []).append(text or message["@message"])
            run = message.get("test_run")
            if run and run.get("progress") == "complete":
                runs.append((*where, run["status"]))
            if "test_state" in message:
                states[where[0].removeprefix("tests/"), where[1]] = message["test_state"]
        ensure(runs, words)
        found = [
            (file.removeprefix("tests/"), run, status == "pass", "\n".join(said.get((file, run), [status])))
            for file, run, status in runs
        ]
        # What is not of a run: a file that cannot be read.
        general = said.get((None, None), [])
        ensure(not general, "\n".join(general))
        return found, states
