#!/usr/bin/env python3
"""Checks deploy/azure offline: `cargo xtask test --only azure`, or by hand

    python run.py FOLDER [--router PROGRAM] [--cloud-init UNPACKED | --no-cloud-init REASON]

in a Python with requirements.txt. FOLDER is for scratch. Prints as Rust's libtest does.
"""

import argparse
import os
import shutil
import sys
import threading
import time
import traceback

import planted
import provider
import rendered
import scripts
import templates
from tree import Failure, Skip, Tree


class Report:
    """What was found so far."""

    def __init__(self):
        self.passed, self.failed, self.ignored = 0, 0, 0
        self.begin = time.monotonic()
        self.lock = threading.Lock()

    def add(self, name, failure=None, skip=None):
        with self.lock:
            if failure is not None:
                self.failed += 1
                print(f"{failure}\ntest {name} ... FAILED", flush=True)
            elif skip is not None:
                self.ignored += 1
                print(f"test {name} ... ignored, {skip}", flush=True)
            else:
                self.passed += 1
                print(f"test {name} ... ok", flush=True)

    def run(self, name, check, *arguments):
        try:
            check(*arguments)
        except Failure as failure:
            self.add(name, failure=failure)
        except Skip as skip:
            self.add(name, skip=skip)
        # A thread that ends without a word would leave its checks out.
        except Exception:  # pylint: disable=broad-except
            self.add(name, failure=traceback.format_exc())
        else:
            self.add(name)

    def close(self):
        word = "ok" if self.failed == 0 else "FAILED"
        print(
            f"\ntest result: {word}. {self.passed} passed; {self.failed} failed; {self.ignored} ignored;"
            f" 0 measured; 0 filtered out; finished in {time.monotonic() - self.begin:.2f}s"
        )
        return 0 if self.failed == 0 else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--router", help="pls-router, to check configurations with")
    parser.add_argument("--cloud-init", help="where Debian's package is unpacked")
    parser.add_argument("--no-cloud-init", default="there is no cloud-init", help="why it is not")
    options = parser.parse_args()

    report = Report()
    sockets = os.path.join(options.folder, "sockets")
    shutil.rmtree(sockets, ignore_errors=True)
    os.makedirs(sockets)
    reattach, _servers = provider.serve(sockets)
    # Two at a time: Terraform waits a lot. Planted errors are in a copy of their own.
    other = threading.Thread(target=with_errors, args=(report, options, reattach))
    other.start()
    as_it_is(report, options, reattach)
    other.join()
    return report.close()


def as_it_is(report, options, reattach):
    """Checks the templates, and what they render."""
    tree = Tree(os.path.join(options.folder, "tree"), reattach)
    for name, check in templates.CHECKS:
        report.run(name, check, tree)
    try:
        found, states = templates.tests(tree)
    except Failure as failure:
        report.add("terraform test", failure=failure)
        return
    for file, run, passed, words in found:
        report.add(f"{file}: {run}", failure=None if passed else words)
    for name, run, check in templates.WHOLE:
        report.run(name, check, states["examples.tftest.hcl", run])
    cloud_init = rendered.CloudInit(options.cloud_init, options.no_cloud_init)
    folder = os.path.join(options.folder, "rendered")
    for name, check in rendered.checks(states, folder, options.router, cloud_init):
        report.run(name, check, tree)


def with_errors(report, options, reattach):
    """Checks that planted errors are found, and then the scripts."""
    tree = Tree(os.path.join(options.folder, "planted"), reattach)
    for name, check in planted.CHECKS + planted.checks(tree) + scripts.CHECKS:
        report.run(name, check, tree)


if __name__ == "__main__":
    sys.exit(main())
