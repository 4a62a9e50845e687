"""The templates as they are: format, validity, and the tests in HCL."""

from tree import EXAMPLES, MODULES, Failure, ensure

import provider


def values(_):
    unknown = provider.Values().unknown()
    ensure(not unknown, f"values.json has what no schema has: {', '.join(unknown)}")


def formatted(tree):
    good, words = tree.terraform(".", "fmt", "-check", "-diff", "-recursive")
    ensure(good, f"not as `terraform fmt -recursive deploy/azure` writes them:\n{words}")


def valid(place):
    def check(tree):
        good, words = tree.validate(place)
        ensure(good, words)

    return check


def resources(state):
    """Returns all resources of a state, as (address, type, values)."""
    found = []

    def walk(module):
        for resource in module.get("resources", []):
            found.append((resource["address"], resource["type"], resource["values"]))
        for child in module.get("child_modules", []):
            walk(child)

    walk(state["root_module"])
    return found


def one_way_out(state):
    """The route to the firewall is on the routers' subnet, and on no other."""
    found = resources(state)
    by_address = {address: values for address, _, values in found}
    tables = [values for _, kind, values in found if kind == "azurerm_subnet_route_table_association"]
    ensure(len(tables) == 1, f"{len(tables)} subnets have a route table")
    router = by_address["module.network.azurerm_subnet.router"]["id"]
    ensure(tables[0]["subnet_id"] == router, "the route table is not on the routers' subnet")
    for address, kind, values in found:
        own = kind == "azurerm_subnet" and (values.get("route_table_id_wo_version") is not None)
        ensure(not own, f"{address} has a route table of its own")
    routes = [values for _, kind, values in found if kind == "azurerm_route"]
    hops = {route["next_hop_in_ip_address"] for route in routes}
    firewall = by_address["module.network.azurerm_firewall.this[0]"]
    ensure(
        hops == {firewall["ip_configuration"][0]["private_ip_address"]},
        f"routes lead to {hops}, which is not the firewall",
    )


def no_public_way_in(state):
    """Only the firewall has public addresses."""
    for address, kind, _ in resources(state):
        public = kind == "azurerm_public_ip" and not address.startswith(
            "module.network.azurerm_public_ip.firewall["
        )
        ensure(not public, f"{address} is a public address")


def package_is_allowed(state):
    """The firewall lets the routers fetch their package."""
    groups = [
        values
        for _, kind, values in resources(state)
        if kind == "azurerm_firewall_policy_rule_collection_group"
    ]
    rules = [
        rule
        for group in groups
        for collection in group["application_rule_collection"]
        for rule in collection["rule"]
    ]
    names = {name for rule in rules for name in rule["destination_fqdns"]}
    ensure("example.blob.core.windows.net" in names, f"only {sorted(names)} are allowed")


CHECKS = [
    ("values", values),
    ("fmt", formatted),
    *((f"validate {place}", valid(place)) for place in MODULES + EXAMPLES),
]

# What is said about all resources of a run of examples.tftest.hcl.
WHOLE = [
    ("whole: the route is on the routers' subnet alone", "everything_new", one_way_out),
    ("whole: only the firewall has public addresses", "everything_new", no_public_way_in),
    ("whole: the routers may fetch their package", "everything_new", package_is_allowed),
]


def tests(tree, verbose=("examples.tftest.hcl", "cloud_init.tftest.hcl")):
    """Runs the tests in HCL. Returns their results, and the states of the verbose ones: they take
    long to print, so only those that something else looks at are."""
    import os

    files = sorted(name for name in os.listdir(tree.path("tests")) if name.endswith(".tftest.hcl"))
    quiet = [name for name in files if name not in verbose]
    found, _ = tree.test(*quiet)
    more, states = tree.test(*verbose, verbose=True)
    if not states:
        raise Failure("the tests of the examples have no state")
    return found + more, states
