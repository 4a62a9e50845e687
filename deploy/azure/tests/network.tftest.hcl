mock_provider "azurerm" {}

variables {
  location      = "westeurope"
  allowed_fqdns = ["pypi.org", "*.pythonhosted.org"]
}

run "the_firewall_is_the_next_hop" {
  command = apply
  module { source = "./modules/network" }

  assert {
    condition = (
      azurerm_route.firewall.address_prefix == "0.0.0.0/0" && azurerm_route.firewall.next_hop_type == "VirtualAppliance" &&
      azurerm_route.firewall.next_hop_in_ip_address == azurerm_firewall.this[0].ip_configuration[0].private_ip_address
    )
    error_message = "everything leads to the firewall's private address"
  }
  assert {
    condition     = azurerm_route.firewall.route_table_name == azurerm_route_table.router.name && !azurerm_route_table.router.bgp_route_propagation_enabled
    error_message = "by the routers' table, which no gateway changes"
  }
  assert {
    condition = (
      azurerm_subnet_route_table_association.router.subnet_id == azurerm_subnet.router.id &&
      azurerm_subnet_route_table_association.router.route_table_id == azurerm_route_table.router.id
    )
    error_message = "of the routers' subnet"
  }
}

# That there is no other association is for offline/run.py to find out, from the whole plan.

run "subnets" {
  command = apply
  module { source = "./modules/network" }

  assert {
    condition     = !azurerm_subnet.pls.private_link_service_network_policies_enabled
    error_message = "Azure makes no service in a subnet with policies"
  }
  assert {
    condition     = !azurerm_subnet.router.default_outbound_access_enabled && !azurerm_subnet.pls.default_outbound_access_enabled
    error_message = "no way out but the firewall"
  }
  assert {
    condition = (
      azurerm_subnet_network_security_group_association.router.subnet_id == azurerm_subnet.router.id &&
      azurerm_subnet_network_security_group_association.pls.subnet_id == azurerm_subnet.pls.id
    )
    error_message = "a security group on both"
  }
  assert {
    condition = alltrue([
      for rule in [azurerm_network_security_rule.router_deny, azurerm_network_security_rule.pls_deny] :
      rule.access == "Deny" && rule.direction == "Inbound" && rule.protocol == "*" && rule.source_address_prefix == "*" && rule.destination_port_range == "*"
    ])
    error_message = "both deny what they do not allow"
  }
}

run "firewall_denies_by_default" {
  command = apply
  module { source = "./modules/network" }

  assert {
    condition = alltrue([
      for c in concat(
        azurerm_firewall_policy_rule_collection_group.this[0].application_rule_collection,
        azurerm_firewall_policy_rule_collection_group.this[0].network_rule_collection
      ) : c.action == "Allow"
    ])
    error_message = "rules only allow; the rest is denied by the firewall itself"
  }
  assert {
    condition     = azurerm_firewall_policy_rule_collection_group.this[0].application_rule_collection[0].rule[0].destination_fqdns == var.allowed_fqdns
    error_message = "exactly the names that were given"
  }
  assert {
    condition = alltrue(flatten([
      for c in azurerm_firewall_policy_rule_collection_group.this[0].application_rule_collection : [
        for r in c.rule : r.source_addresses == tolist([var.router_subnet_prefix])
      ]
    ]))
    error_message = "from the routers' subnet only"
  }
  assert {
    condition     = length(azurerm_firewall_policy_rule_collection_group.this[0].network_rule_collection) == 0
    error_message = "no network rule, which would come before the names"
  }
  assert {
    condition     = azurerm_firewall_policy.this[0].threat_intelligence_mode == "Deny" && azurerm_firewall.this[0].firewall_policy_id == azurerm_firewall_policy.this[0].id
    error_message = "the firewall has the policy"
  }
  assert {
    condition     = toset(azurerm_firewall.this[0].zones) == toset(["1", "2", "3"]) && length(azurerm_public_ip.firewall) == 2
    error_message = "over the zones, with two addresses"
  }
}

run "nothing_is_allowed_unless_named" {
  command = plan
  module { source = "./modules/network" }
  variables { allowed_fqdns = [] }

  assert {
    condition     = length(azurerm_firewall_policy_rule_collection_group.this) == 0
    error_message = "no names, no rules"
  }
}

run "further_rules" {
  command = plan
  module { source = "./modules/network" }
  variables {
    application_rules = [{ name = "sql", fqdns = ["x.database.windows.net"], protocols = [{ type = "Mssql", port = 1433 }] }]
    network_rules     = [{ name = "postgres", destinations = ["10.9.0.4"], ports = ["5432"] }]
  }

  assert {
    condition     = azurerm_firewall_policy_rule_collection_group.this[0].application_rule_collection[0].rule[*].name == tolist(["https", "sql"])
    error_message = "names of both kinds"
  }
  assert {
    condition     = azurerm_firewall_policy_rule_collection_group.this[0].network_rule_collection[0].rule[0].source_addresses == tolist([var.router_subnet_prefix])
    error_message = "addresses, from the routers' subnet only"
  }
}

run "peering" {
  command = apply
  module { source = "./modules/network" }

  assert {
    condition = alltrue([
      for p in [azurerm_virtual_network_peering.to_hub, azurerm_virtual_network_peering.from_hub[0]] : p.allow_forwarded_traffic && p.allow_virtual_network_access
    ])
    error_message = "forwarded traffic passes in both directions"
  }
  assert {
    condition = (
      azurerm_virtual_network_peering.to_hub.remote_virtual_network_id == azurerm_virtual_network.hub[0].id &&
      azurerm_virtual_network_peering.from_hub[0].remote_virtual_network_id == azurerm_virtual_network.this.id
    )
    error_message = "between the two networks"
  }
}

run "existing_hub" {
  command = apply
  module { source = "./modules/network" }
  variables {
    existing_hub = {
      virtual_network_id          = "/subscriptions/s/resourceGroups/hub-group/providers/Microsoft.Network/virtualNetworks/hub"
      firewall_private_ip_address = "10.1.0.4"
    }
  }

  assert {
    condition     = azurerm_route.firewall.next_hop_in_ip_address == "10.1.0.4" && output.firewall_private_ip_address == "10.1.0.4"
    error_message = "the existing firewall is the next hop"
  }
  assert {
    condition     = length(azurerm_firewall.this) + length(azurerm_virtual_network.hub) + length(azurerm_public_ip.firewall) + length(azurerm_firewall_policy.this) == 0
    error_message = "no second hub"
  }
  assert {
    condition = (
      azurerm_virtual_network_peering.from_hub[0].resource_group_name == "hub-group" &&
      azurerm_virtual_network_peering.from_hub[0].virtual_network_name == "hub"
    )
    error_message = "the hub's half of the peering"
  }
  assert {
    condition     = length(azurerm_firewall_policy_rule_collection_group.this) == 0 && strcontains(output.next_steps, "allow HTTPS:443 from ${var.router_subnet_prefix} to pypi.org")
    error_message = "the owners of the firewall are told which rules to make"
  }
}

run "hub_of_others" {
  command = apply
  module { source = "./modules/network" }
  variables {
    existing_hub = {
      virtual_network_id          = "/subscriptions/s/resourceGroups/hub-group/providers/Microsoft.Network/virtualNetworks/hub"
      firewall_private_ip_address = "10.1.0.4"
      firewall_policy_id          = "/subscriptions/s/resourceGroups/hub-group/providers/Microsoft.Network/firewallPolicies/hub"
      peer_from_hub               = false
    }
  }

  assert {
    condition     = length(azurerm_virtual_network_peering.from_hub) == 0 && strcontains(output.next_steps, "az network vnet peering create --resource-group hub-group --vnet-name hub")
    error_message = "the hub's owners are told how to peer"
  }
  assert {
    condition     = azurerm_firewall_policy_rule_collection_group.this[0].firewall_policy_id == "/subscriptions/s/resourceGroups/hub-group/providers/Microsoft.Network/firewallPolicies/hub"
    error_message = "rules go to the policy that was named"
  }
}

run "every_server_that_exists" {
  command = plan
  module { source = "./modules/network" }
  variables { allowed_fqdns = ["*"] }
  expect_failures = [var.allowed_fqdns]
}

run "name_with_a_scheme" {
  command = plan
  module { source = "./modules/network" }
  variables { allowed_fqdns = ["https://pypi.org/"] }
  expect_failures = [var.allowed_fqdns]
}

run "every_address_that_exists" {
  command = plan
  module { source = "./modules/network" }
  variables { network_rules = [{ name = "all", destinations = ["0.0.0.0/0"], ports = ["443"] }] }
  expect_failures = [var.network_rules]
}

run "subnet_outside_its_network" {
  command = plan
  module { source = "./modules/network" }
  variables { address_space = "10.20.30.0/24" }
  expect_failures = [var.router_subnet_prefix]
}

run "service_outside_its_network" {
  command = plan
  module { source = "./modules/network" }
  variables { pls_subnet_prefix = "10.0.1.0/26" }
  expect_failures = [var.pls_subnet_prefix]
}

run "firewall_subnet_too_small" {
  command = plan
  module { source = "./modules/network" }
  variables { firewall_subnet_prefix = "10.1.0.0/27" }
  expect_failures = [var.firewall_subnet_prefix]
}

run "firewall_name_instead_of_address" {
  command = plan
  module { source = "./modules/network" }
  variables {
    existing_hub = {
      virtual_network_id          = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/hub"
      firewall_private_ip_address = "firewall.example"
    }
  }
  expect_failures = [var.existing_hub]
}
