"""Errors that are planted: the checks must find each, or they prove nothing."""

import functools
import json
import os

from tree import ensure

# Together, since Terraform starts once for each group: the directory, and for each error its name,
# the file, what is replaced by what, and what Terraform has to say. An error hides others of its
# resource, and of those that depend on it: so one in each, and no resource on which others depend.
INVALID = [
    (
        "modules/router",
        [
            (
                "misspelt argument",
                "security.tf",
                "destination_port_ranges ",
                "destination_ports_ranges ",
                '"destination_ports_ranges" is not expected',
            ),
            (
                "name of azurerm 4",
                "main.tf",
                "primary                        = true\n    accelerated_networking_enabled",
                "primary                        = true\n    enable_accelerated_networking",
                '"enable_accelerated_networking" is not expected',
            ),
            (
                "wrong value",
                "security.tf",
                'protocol                    = "Tcp"\n  source_address_prefix       = "AzureL',
                'protocol                    = "TCP"\n  source_address_prefix       = "AzureL',
                "protocol is one of",
            ),
            (
                "number out of range",
                "security.tf",
                "= 4096",
                "= 5000",
                "priority is 100 to 4096, not 5000",
            ),
            ("wrong type", "security.tf", "= 110", '= "first"', "a number is required"),
            (
                "what the provider decides",
                "main.tf",
                "  zone                  = each.value\n",
                '  private_ip_address = "10.0.0.1"\n',
                "private_ip_address is decided by the provider",
            ),
            (
                "required argument left out",
                "main.tf",
                "      subnet_id                  = var.pls_subnet_id\n",
                "",
                '"subnet_id" is required',
            ),
            (
                "unknown attribute",
                "outputs.tf",
                "azurerm_lb.this.frontend_ip_configuration[0].private_ip_address",
                "azurerm_lb.this.frontend_addresses",
                'named "frontend_addresses"',
            ),
        ],
    ),
    (
        "modules/router",
        [
            (
                "time out of range",
                "main.tf",
                '"PT30M"',
                '"PT5M"',
                "grace_period is PT10M to PT90M",
            )
        ],
    ),
    (
        "modules/network",
        [
            (
                "type of resource that there is not",
                "main.tf",
                'resource "azurerm_route" ',
                'resource "azurerm_rout" ',
                "azurerm_rout",
            )
        ],
    ),
    (
        "modules/databricks",
        [
            (
                "what only another cloud has",
                "main.tf",
                "  domain_names                   =",
                "  vpc_endpoint_id                =",
                "vpc_endpoint_id",
            )
        ],
    ),
    (
        "examples/router-only",
        [
            (
                "argument that a module does not have",
                "main.tf",
                "pls_nat_addresses    =",
                "nat_addresses =",
                '"nat_addresses" is not expected',
            )
        ],
    ),
]

# The same for the tests in HCL: the file with the tests, and for each error its name, the file,
# what is replaced by what, the run that has to fail, and what it has to say.
WRONG = [
    (
        "router.tftest.hcl",
        [
            (
                "repair by the balancer's path",
                "modules/router/main.tf",
                '"/live"',
                '"/"',
                "repair_asks_whether_it_lives",
                "every router deleted",
            ),
            (
                "balancing by the repair's path",
                "modules/router/main.tf",
                'request_path        = "/"',
                'request_path        = "/live"',
                "balancing_asks_whether_it_forwards",
                "the probe asks on /",
            ),
            (
                "probe on another port",
                "modules/router/main.tf",
                "port                = var.health_port",
                "port                = 8080",
                "the_probe_follows_the_daemons_port",
                "one port for the probe",
            ),
            (
                "frontend in no zone",
                "modules/router/main.tf",
                "    zones                         = local.zones\n",
                "    zones                         = []\n",
                "load_balancer",
                "survives a zone's outage",
            ),
            (
                "sources that are everyone",
                "modules/router/main.tf",
                "sources       = var.pls_nat_addresses",
                'sources       = ["0.0.0.0/0"]',
                "the_nat_addresses_are_the_sources",
                "sources are the NAT addresses",
            ),
            (
                "a rule that allows the rest",
                "modules/router/security.tf",
                '"Deny"',
                '"Allow"',
                "deny_by_default",
                "what no rule allows is denied",
            ),
        ],
    ),
    (
        "network.tftest.hcl",
        [
            (
                "route on the service's subnet",
                "modules/network/main.tf",
                "subnet_id      = azurerm_subnet.router.id",
                "subnet_id      = azurerm_subnet.pls.id",
                "the_firewall_is_the_next_hop",
                "of the routers' subnet",
            ),
        ],
    ),
    (
        "network.tftest.hcl",
        [
            (
                "wrong value in a dynamic block",
                "modules/network/firewall.tf",
                'type = "Https", port = 443',
                'type = "HTTPS", port = 443',
                "the_firewall_is_the_next_hop",
                "type is one of",
            ),
        ],
    ),
    (
        "databricks.tftest.hcl",
        [
            (
                "connection of another endpoint",
                "modules/databricks/main.tf",
                'lower("/${rule.endpoint_name}")',
                "lower(rule.endpoint_name)",
                "rules_lead_to_the_service",
                "no connection of the endpoint",
            )
        ],
    ),
]

SERVICE = "modules/router/main.tf"
PREVENT = "prevent_destroy = true"


class Planted:
    """Changes of files, until the end of a `with`."""

    def __init__(self, tree, changes):
        self.changes = [(tree.path(file), old, new) for file, old, new in changes]
        self.before = {}

    def __enter__(self):
        for path, old, new in self.changes:
            with open(path, encoding="utf-8") as file:
                text = file.read()
            self.before.setdefault(path, text)
            count = text.count(old)
            ensure(count == 1, f"{path} has {old!r} {count} times: change planted.py with it")
            self.write(path, text.replace(old, new))

    def __exit__(self, *_):
        for path, text in self.before.items():
            self.write(path, text)

    @staticmethod
    def write(path, text):
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)


def flat(words):
    return " ".join(words.replace("│", " ").split())


def invalid(tree, place, errors):
    """Returns the words of Terraform about a directory with errors."""
    tree.init(place)
    with Planted(tree, [(f"{place}/{file}", old, new) for _, file, old, new, _ in errors]):
        good, words = tree.validate(place)
    ensure(not good, f"{place} is valid with errors in it")
    return flat(words)


def wrong(tree, test, errors):
    """Returns what the failed runs of a test file have to say, by run."""
    with Planted(tree, [error[1:4] for error in errors]):
        found, _ = tree.test(test)
    return {run: flat(words) for _, run, passed, words in found if not passed}


def found_in(words, expected):
    def check(_):
        said = words()
        ensure(expected in said, f"was not found: {expected!r} is not in\n{said}")

    return check


def checks(tree):
    """Returns the checks of planted errors. Terraform runs at the first of a group."""
    made = []
    for place, errors in INVALID:
        words = functools.cache(functools.partial(invalid, tree, place, errors))
        for name, *_, expected in errors:
            made.append((f"planted: {name}", found_in(words, expected)))
    for test, errors in WRONG:
        runs = functools.cache(functools.partial(wrong, tree, test, errors))
        for name, *_, run, expected in errors:
            words = lambda runs=runs, run=run: runs().get(run, f"(run {run} passed)")
            made.append((f"planted: {name}", found_in(words, expected)))
    return made


def removal(tree):
    """Asks for the removal of a service that exists. Returns whether it may be removed, and the
    words."""
    state = {
        "version": 4,
        "terraform_version": "1.9.0",
        "serial": 1,
        "lineage": "test",
        "outputs": {},
        "resources": [
            {
                "module": "module.router",
                "mode": "managed",
                "type": "azurerm_private_link_service",
                "name": "this",
                "provider": 'provider["registry.terraform.io/hashicorp/azurerm"]',
                "instances": [{"schema_version": 0, "attributes": {"id": "a", "name": "b"}}],
            }
        ],
    }
    place = "examples/router-only"
    with open(tree.path(place, "terraform.tfstate"), "w", encoding="utf-8") as file:
        json.dump(state, file)
    with open(tree.path(place, "terraform.tfvars.example"), encoding="utf-8") as file:
        with open(tree.path(place, "terraform.tfvars"), "w", encoding="utf-8") as copy:
            copy.write(file.read())
    tree.init(place)
    try:
        return tree.terraform(place, "plan", "-destroy", "-refresh=false", "-no-color")
    finally:
        os.remove(tree.path(place, "terraform.tfstate"))


def kept(tree):
    good, words = removal(tree)
    ensure(not good and "Instance cannot be destroyed" in words, words)


def not_kept(tree):
    with Planted(tree, [(SERVICE, PREVENT, "prevent_destroy = false")]):
        good, words = removal(tree)
    ensure(good and "1 to destroy" in words, words)


CHECKS = [
    ("the service is never destroyed", kept),
    ("planted: a service that may be destroyed", not_kept),
]
