"""Providers for Terraform that know schemas and nothing else.

Terraform starts no provider of its own if TF_REATTACH_PROVIDERS says that one runs already. These
serve the schemas of schemas/*.json over tfplugin6 (gRPC) on Unix sockets. Beside what the schema
says, they refuse values that values.json does not allow, and what the provider alone decides.
Nothing is ever created: `validate`, `test` with mocks, and `plan` of a removal are all they do.
"""

import json
import os
import re
from concurrent import futures

import grpc
import msgpack
from tf.gen import grpc_controller_pb2 as controller
from tf.gen import grpc_controller_pb2_grpc as controller_rpc
from tf.gen import grpc_stdio_pb2_grpc as stdio_rpc
from tf.gen import tfplugin_pb2 as plugin
from tf.gen import tfplugin_pb2_grpc as plugin_rpc

HERE = os.path.dirname(os.path.abspath(__file__))
NESTING = {"single": 1, "list": 2, "set": 3, "map": 4}


def schemas():
    """Returns the schemas by the provider's source."""
    found = {}
    folder = os.path.join(HERE, "schemas")
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            schema = json.load(file)
        found[schema["facts"]["source"]] = schema
    return found


class Values:
    """The allowed values of arguments, by `resource.block.argument`."""

    def __init__(self):
        with open(os.path.join(HERE, "values.json"), encoding="utf-8") as file:
            self.table = json.load(file)
        del self.table["source"]

    def complaint(self, path, value):
        """Returns what is wrong with a value, or None."""
        rule = self.table.get(path)
        if rule is None:
            return None
        if isinstance(value, list):
            return next(filter(None, (self.complaint(path, one) for one in value)), None)
        name = path.rsplit(".", 1)[1]
        allowed = rule if isinstance(rule, list) else rule.get("values")
        if allowed is not None:
            return None if value in allowed else f"{name} is one of {allowed}, not {value!r}"
        if "minutes" in rule:
            low, high = rule["minutes"]
            time = re.fullmatch(r"PT(\d+)M", str(value))
            if time and low <= int(time[1]) <= high:
                return None
            return f"{name} is PT{low}M to PT{high}M, not {value!r}"
        low, high = rule["min"], rule["max"]
        return None if low <= value <= high else f"{name} is {low} to {high}, not {value!r}"

    def unknown(self):
        """Returns the entries that no schema has: they would check nothing."""
        paths = set()

        def walk(block, path):
            paths.update(f"{path}.{name}" for name in block["attributes"])
            for name, nested in block["block_types"].items():
                walk(nested["block"], f"{path}.{name}")

        for schema in schemas().values():
            for name, block in schema["resources"].items():
                walk(block, name)
        return sorted(set(self.table) - paths)


def is_known(value):
    return value is not None and not isinstance(value, msgpack.ExtType)


def check(block, value, path, where, values, diagnostics):
    """Adds what is wrong with a block to the diagnostics."""

    def say(name, text):
        diagnostic = diagnostics.add(severity=1, summary="Not allowed", detail=text)
        for step in [*where, name]:
            if isinstance(step, int):
                diagnostic.attribute.steps.add(element_key_int=step)
            else:
                diagnostic.attribute.steps.add(attribute_name=step)

    if not isinstance(value, dict):
        return
    for name, attribute in block["attributes"].items():
        given = value.get(name)
        if given is None:
            continue
        if attribute.get("computed") and not attribute.get("optional"):
            say(name, f"{name} is decided by the provider and cannot be set")
        if is_known(given):
            complaint = values.complaint(f"{path}.{name}", given)
            if complaint:
                say(name, complaint)
    for name, nested in block["block_types"].items():
        given = value.get(name)
        if not is_known(given):
            continue
        for i, one in enumerate(given if isinstance(given, list) else [given]):
            step = [i] if nested["nesting_mode"] == "list" else []
            below = [*where, name, *step]
            check(nested["block"], one, f"{path}.{name}", below, values, diagnostics)


def message(block):
    """Returns a block of a schema as Terraform's protocol has it."""
    made = plugin.Schema.Block()
    for name, attribute in sorted(block["attributes"].items()):
        flags = {flag: attribute.get(flag, False) for flag in ("required", "optional", "computed")}
        made.attributes.add(name=name, type=json.dumps(attribute["type"]).encode(), **flags)
    for name, nested in sorted(block["block_types"].items()):
        inner = made.block_types.add(
            type_name=name,
            nesting=NESTING[nested["nesting_mode"]],
            min_items=nested.get("min_items", 0),
            max_items=nested.get("max_items", 0),
        )
        inner.block.CopyFrom(message(nested["block"]))
    return made


def completed(block, value):
    """Returns an object of a state file with everything that it leaves out."""
    made = {name: value.get(name) for name in block["attributes"]}
    for name, nested in block["block_types"].items():
        given = value.get(name)
        if nested["nesting_mode"] == "single":
            made[name] = None if given is None else completed(nested["block"], given)
        else:
            made[name] = [completed(nested["block"], one) for one in given or []]
    return made


class Provider(plugin_rpc.ProviderServicer):
    """One provider."""

    def __init__(self, schema, values):
        self.schema, self.values = schema, values

    def GetMetadata(self, request, context):
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "no metadata")

    def GetProviderSchema(self, request, context):
        schema = lambda block: plugin.Schema(version=0, block=message(block))
        response = plugin.GetProviderSchema.Response(provider=schema(self.schema["provider"]))
        for name, block in self.schema["resources"].items():
            response.resource_schemas[name].CopyFrom(schema(block))
        for name, block in self.schema["data_sources"].items():
            response.data_source_schemas[name].CopyFrom(schema(block))
        return response

    def ValidateProviderConfig(self, request, context):
        return plugin.ValidateProviderConfig.Response()

    def ValidateResourceConfig(self, request, context):
        response = plugin.ValidateResourceConfig.Response()
        value = msgpack.unpackb(request.config.msgpack, raw=False, strict_map_key=False)
        block = self.schema["resources"][request.type_name]
        check(block, value, request.type_name, [], self.values, response.diagnostics)
        return response

    def ValidateDataResourceConfig(self, request, context):
        return plugin.ValidateDataResourceConfig.Response()

    def ConfigureProvider(self, request, context):
        return plugin.ConfigureProvider.Response()

    def UpgradeResourceState(self, request, context):
        state = completed(
            self.schema["resources"][request.type_name], json.loads(request.raw_state.json)
        )
        packed = plugin.DynamicValue(msgpack=msgpack.packb(state))
        return plugin.UpgradeResourceState.Response(upgraded_state=packed)

    def StopProvider(self, request, context):
        return plugin.StopProvider.Response()


class Stdio(stdio_rpc.GRPCStdioServicer):
    def StreamStdio(self, request, context):
        return iter([])


class Controller(controller_rpc.GRPCControllerServicer):
    def Shutdown(self, request, context):
        # Terraform asks for it after each command; these serve the next one as well.
        return controller.Empty()


def serve(folder):
    """Starts all providers, with their sockets in a folder. Returns what TF_REATTACH_PROVIDERS has
    to be, and the servers."""
    reattach, servers = {}, []
    values = Values()
    size = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    for source, schema in schemas().items():
        server = grpc.server(futures.ThreadPoolExecutor(8), options=size)
        plugin_rpc.add_ProviderServicer_to_server(Provider(schema, values), server)
        controller_rpc.add_GRPCControllerServicer_to_server(Controller(), server)
        stdio_rpc.add_GRPCStdioServicer_to_server(Stdio(), server)
        socket = os.path.join(folder, source.replace("/", "_") + ".sock")
        server.add_insecure_port(f"unix://{socket}")
        server.start()
        servers.append(server)
        reattach[source] = {
            "Protocol": "grpc",
            "ProtocolVersion": 6,
            "Pid": os.getpid(),
            "Test": True,
            "Addr": {"Network": "unix", "String": socket},
        }
    return json.dumps(reattach), servers
