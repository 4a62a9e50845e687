"""What the templates render, given to the programs that will read it."""

import base64
import os
import subprocess
import sys

from tree import Skip, ensure

# Runs of cloud_init.tftest.hcl, whose outputs are used.
RUNS = ["config", "cloud_init", "port_of_the_probe"]


def outputs(states, run):
    state = states["cloud_init.tftest.hcl", run]
    return {name: output["value"] for name, output in state["outputs"].items()}


def write(folder, name, text):
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, name)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def run(command, **more):
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **more
    )


class CloudInit:
    """cloud-init's own check of a file, without cloud-init on this machine: the package is unpacked
    somewhere, and its libraries are in this Python."""

    def __init__(self, unpacked, reason):
        self.unpacked, self.reason = unpacked, reason

    def check(self, path):
        """Returns whether cloud-init takes a file, and its words."""
        if self.unpacked is None:
            raise Skip(self.reason)
        package = os.path.join(self.unpacked, "usr/lib/python3/dist-packages")
        done = run(
            [sys.executable, "-m", "cloudinit.cmd.main", "schema", "--config-file", path],
            env={**os.environ, "PYTHONPATH": package},
        )
        return done.returncode == 0 and "Valid" in done.stdout, done.stdout


def checks(states, folder, router, cloud_init):
    """Returns the checks of everything that was rendered."""

    def config(name):
        def check(_):
            if router is None:
                raise Skip("there is no pls-router to check the configuration with (--router)")
            path = write(folder, f"{name}.toml", outputs(states, name)["config"])
            done = run([router, "check", "--config", path, "--config-only"])
            good = done.returncode == 0 and "warning" not in done.stdout
            ensure(good, f"{done.stdout}\n{outputs(states, name)['config']}")

        return check

    def user_data(name):
        def check(_):
            path = write(folder, f"{name}.yaml", outputs(states, name)["user_data"])
            good, words = cloud_init.check(path)
            ensure(good, words)

        return check

    def bad_config(_):
        if router is None:
            raise Skip("there is no pls-router to check the configuration with (--router)")
        text = outputs(states, "config")["config"].replace("listen = ", "listens = ", 1)
        done = run([router, "check", "--config", write(folder, "bad.toml", text), "--config-only"])
        ensure(done.returncode != 0 and "listens" in done.stdout, f"was not found: {done.stdout}")

    def bad_user_data(_):
        text = outputs(states, "config")["user_data"].replace("permissions:", "permission:", 1)
        good, words = cloud_init.check(write(folder, "bad.yaml", text))
        ensure(not good and "permission" in words, f"was not found: {words}")

    def shell(_):
        import yaml

        for file in yaml.safe_load(outputs(states, "cloud_init")["user_data"])["write_files"]:
            if file["path"].endswith(".sh"):
                script = base64.b64decode(file["content"]).decode()
                done = run(["sh", "-n"], input=script)
                ensure(done.returncode == 0, f"{file['path']}: {done.stdout}")

    return [
        *((f"rendered: pls-router check, {name}", config(name)) for name in RUNS),
        ("planted: a key that pls-router does not have", bad_config),
        *((f"rendered: cloud-init schema, {name}", user_data(name)) for name in RUNS),
        ("planted: a key that cloud-init does not have", bad_user_data),
        ("rendered: scripts", shell),
    ]
