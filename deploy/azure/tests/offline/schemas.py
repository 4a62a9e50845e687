#!/usr/bin/env python3
"""Makes schemas/*.json: what Terraform's providers accept, without the providers.

    python schemas.py         writes them anew (fetches 60 MB of wheels from PyPI by pip)
    python schemas.py --check fails if they are not what the wheels say

The wheels are the providers' typed bindings for CDK Terrain (cdktn), generated from the output of
`terraform providers schema`. Their generated JavaScript and declarations have every attribute with
its type and whether it is required, optional or computed, and every block with its nesting. They do
not have allowed values (values.json), conflicts, and what makes a new resource.

Only the resources that deploy/azure uses are kept. To use another one, add it to PROVIDERS.
"""

import glob
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile

HERE = os.path.dirname(os.path.abspath(__file__))

# Of each provider: its wheel, and what is kept.
PROVIDERS = {
    "azurerm": {
        "source": "registry.terraform.io/hashicorp/azurerm",
        "wheel": "cdktn-provider-azurerm==18.9.0",
        "resources": [
            "firewall",
            "firewall-policy",
            "firewall-policy-rule-collection-group",
            "lb",
            "lb-backend-address-pool",
            "lb-probe",
            "lb-rule",
            "linux-virtual-machine",
            "linux-virtual-machine-scale-set",
            "monitor-diagnostic-setting",
            "network-interface",
            "network-interface-backend-address-pool-association",
            "network-interface-security-group-association",
            "network-security-group",
            "network-security-rule",
            "private-link-service",
            "public-ip",
            "resource-group",
            "route",
            "route-table",
            "subnet",
            "subnet-network-security-group-association",
            "subnet-route-table-association",
            "virtual-network",
            "virtual-network-peering",
        ],
    },
    "databricks": {
        "source": "registry.terraform.io/databricks/databricks",
        "wheel": "cdktn-provider-databricks==18.11.0",
        "resources": [
            "mws-ncc-binding",
            "mws-ncc-private-endpoint-rule",
            "mws-network-connectivity-config",
        ],
    },
    "azapi": {
        "source": "registry.terraform.io/azure/azapi",
        "wheel": "cdktn-provider-azapi==1.0.0",
        "resources": ["update-resource", "data-azapi-resource"],
    },
    "time": {
        "source": "registry.terraform.io/hashicorp/time",
        "wheel": "cdktn-provider-time==14.0.2",
        "resources": ["sleep"],
    },
}

# One attribute of a `synthesizeHclAttributes` or `...ToHclTerraform` function.
ATTRIBUTE = re.compile(
    r"^\s+(\w+): \{\s*value: (.*?),\s*\n\s*isBlock: (true|false),\s*"
    r'type: "(\w+)",\s*storageClassType: "([\w.]+)",\s*\},',
    re.M,
)
# `// name - computed: true, optional: false, required: false`
FLAGS = re.compile(
    r"^\s*// (\w+) - computed: (true|false), optional: (true|false), required: (true|false)", re.M
)
COMPUTED = re.compile(
    r"get(String|Number|Boolean|List|NumberList|StringMap|NumberMap|BooleanMap|AnyMap)Attribute"
    r"\(['\"](\w+)['\"]\)"
)
SIMPLE = {"string": "string", "number": "number", "boolean": "bool", "any": "dynamic"}
COMPUTED_TYPES = {
    "String": "string",
    "Number": "number",
    "Boolean": "bool",
    "List": ["list", "string"],
    "NumberList": ["list", "number"],
    "StringMap": ["map", "string"],
    "NumberMap": ["map", "number"],
    "BooleanMap": ["map", "bool"],
    # The bindings have no other way to say "of any type".
    "AnyMap": "dynamic",
}


def read(folder, suffix):
    paths = sorted(glob.glob(f"{folder}/**/*{suffix}", recursive=True))
    return "\n".join(open(path, encoding="utf-8").read() for path in paths)


class Binding:
    """The generated code of one resource."""

    def __init__(self, folder):
        code, declarations = read(folder, ".js"), read(folder, ".d.ts")
        functions = r"^function (\w+)ToHclTerraform\(struct\) \{(.*?)^\}"
        self.functions = {m[1]: m[2] for m in re.finditer(functions, code, re.M | re.S)}
        classes = r"^class (\w+) extends cdktn\.\w+ \{(.*?)^\}"
        self.classes = {m[1]: m[2] for m in re.finditer(classes, code, re.M | re.S)}
        interfaces = r"^export interface (\w+)(?: extends [\w.]+)? \{(.*?)^\}"
        self.interfaces = {
            m[1]: self.fields(m[2]) for m in re.finditer(interfaces, declarations, re.M | re.S)
        }
        name = re.search(r'tfResourceType = "(\w+)"', code)
        self.name = name and name[1]
        version = re.search(r"providerVersion: '([\d.]+)'", code)
        self.version = version and version[1]

    @staticmethod
    def fields(body):
        """Returns the fields of an interface by Terraform's names: optional, and whether a block."""
        fields = {}
        for m in re.finditer(r"/\*\*(.*?)\*/\s*readonly \w+(\??): .*?;\n", body, re.S):
            name = re.search(r"#(\w+) ", m[1])
            if name:
                block = re.search(rf"^\s*\*\s*{name[1]} block", m[1], re.M) is not None
                fields[name[1]] = {"optional": bool(m[2]), "block": block}
        return fields

    @staticmethod
    def attributes(body):
        return {m[1]: (m[3] == "true", m[4], m[5], m[2]) for m in ATTRIBUTE.finditer(body)}

    def type(self, _, kind, storage, value):
        """Returns the type of an attribute, as Terraform writes types in JSON."""
        function = re.search(r"(\w+)ToHclTerraform\b", value)
        if function and function[1] in self.functions:
            members = self.attributes(self.functions[function[1]])
            structure = ["object", {name: self.type(*a) for name, a in members.items()}]
            return structure if kind == "struct" else [kind, structure]
        if kind == "simple":
            return SIMPLE.get(storage, "dynamic")
        if kind == "map":
            base = SIMPLE.get(storage.replace("Map", ""), "dynamic")
            return "dynamic" if base == "dynamic" else ["map", base]
        base = SIMPLE.get(storage.replace("List", ""), "dynamic")
        for _ in range(max(storage.count("List") - 1, 0)):
            base = ["list", base]
        return [kind, base]

    def computed(self, body):
        """Returns what a class only reads: the attributes that the provider decides."""
        found = {}
        for m in re.finditer(r"^    get (\w+)\(\) \{\s*return (.*?);\s*\}", body, re.M | re.S):
            getter = COMPUTED.search(m[2])
            if not getter or m[1].endswith("Input"):
                continue
            if re.search(rf"^    set {m[1]}\(", body, re.M):
                continue
            kind = COMPUTED_TYPES[getter[1]]
            if "tolist" in m[2] and isinstance(kind, list):
                kind = ["set", kind[1]]
            found[getter[2]] = kind
        lists = (
            r"^\s+(?:this\.)?_(\w+) = new (?:cdktn\.)?(\w+?)(List|OutputReference|Map)"
            r'\(this, "(\w+)"(?:, (true|false))?'
        )
        for m in re.finditer(lists, body, re.M):
            field, name, kind, attribute, is_set = m.groups()
            if re.search(rf"\bput{field[0].upper()}{field[1:]}\(", body):
                continue
            if name in ("String", "Number", "Boolean"):
                found[attribute] = ["map", SIMPLE[name.lower()]]
                continue
            if name == "Any":
                found[attribute] = "dynamic"
                continue
            inner = ["object", self.computed(self.classes.get(name + "OutputReference", ""))]
            wrap = {"List": ["set" if is_set == "true" else "list", inner], "Map": ["map", inner]}
            found[attribute] = wrap.get(kind, inner)
        return found

    def block(self, body, fields, code):
        attributes, blocks = {}, {}
        for name, (is_block, kind, storage, value) in self.attributes(body).items():
            field = fields.get(name, {"optional": True, "block": is_block})
            if not (is_block and field["block"]):
                attributes[name] = {"type": self.type(is_block, kind, storage, value)}
                attributes[name]["optional" if field["optional"] else "required"] = True
                continue
            function = re.search(r"(\w+)ToHclTerraform\b", value)[1]
            interface = function[0].upper() + function[1:]
            inner = self.block(
                self.functions[function],
                self.interfaces.get(interface, {}),
                self.classes.get(interface + "OutputReference", ""),
            )
            nesting = "single" if kind == "struct" else kind
            blocks[name] = {"nesting_mode": nesting, "block": inner}
            if nesting != "single":
                blocks[name]["min_items"] = 0 if field["optional"] else 1
                if "listMapper" not in value:
                    blocks[name]["max_items"] = 1
        for name, kind in self.computed(code).items():
            if name not in attributes and name not in blocks:
                attributes[name] = {"type": kind, "computed": True}
        # A comment says what may be both set and decided by the provider.
        for m in FLAGS.finditer(code):
            attribute = attributes.get(m[1])
            if attribute:
                for flag, value in zip(("computed", "optional", "required"), m.groups()[1:]):
                    attribute.pop(flag, None)
                    if value == "true":
                        attribute[flag] = True
        return {"attributes": attributes, "block_types": blocks}

    def schema(self):
        found = [(n, b) for n, b in self.classes.items() if "synthesizeHclAttributes" in b]
        name, code = found[0]
        body = code[code.index("synthesizeHclAttributes") :]
        return self.block(body, self.interfaces.get(name + "Config", {}), code)


def extract(wheel, provider):
    """Returns what is kept of a provider."""
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            inner = next(name for name in archive.namelist() if name.endswith(".jsii.tgz"))
            archive.extract(inner, folder)
        with tarfile.open(os.path.join(folder, inner)) as archive:
            archive.extractall(folder, filter="data")
        lib = os.path.join(folder, "package", "lib")
        own = Binding(os.path.join(lib, "provider"))
        kept = {"provider": own.schema(), "version": own.version}
        kept["provider"]["attributes"].pop("alias", None)
        kept.update(resources={}, data_sources={})
        for name in provider["resources"]:
            binding = Binding(os.path.join(lib, name))
            kind = "data_sources" if name.startswith("data-") else "resources"
            kept[kind][binding.name] = binding.schema()
    return kept


def text(name, provider, kept):
    """Returns the file: a line for each resource, so that a change of one is seen as such."""
    facts = {
        "source": provider["source"],
        "version": kept["version"],
        "wheel": f"PyPI's {provider['wheel']}",
    }
    lines = ["{", f'"facts": {json.dumps(facts, sort_keys=True)},']
    lines.append(f'"provider": {json.dumps(kept["provider"], sort_keys=True)},')
    for kind in ("resources", "data_sources"):
        entries = ",\n".join(
            f"{json.dumps(key)}: {json.dumps(value, sort_keys=True)}"
            for key, value in sorted(kept[kind].items())
        )
        lines.append(f'"{kind}": {{\n{entries}\n}}' + ("," if kind == "resources" else ""))
    return "\n".join(lines + ["}", ""])


def main():
    check = sys.argv[1:] == ["--check"]
    stale = []
    with tempfile.TemporaryDirectory() as folder:
        for name, provider in PROVIDERS.items():
            fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
            subprocess.run([*fetch, os.path.join(folder, name), provider["wheel"]], check=True)
            (wheel,) = glob.glob(os.path.join(folder, name, "*.whl"))
            new = text(name, provider, extract(wheel, provider))
            path = os.path.join(HERE, "schemas", f"{name}.json")
            old = open(path, encoding="utf-8").read() if os.path.exists(path) else ""
            if old != new:
                stale.append(path)
                if not check:
                    with open(path, "w", encoding="utf-8") as file:
                        file.write(new)
            print(f"{name}: {len(new)} bytes, {'changed' if old != new else 'the same'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
