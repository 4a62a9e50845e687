output "resource_group_name" {
  description = "The resource group."
  value       = local.resource_group_name
}

output "virtual_network_id" {
  description = "The routers' virtual network."
  value       = azurerm_virtual_network.this.id
}

output "router_subnet_id" {
  description = "The routers' subnet; known once its route to the firewall is in force."
  value       = azurerm_subnet.router.id
  # A VM in a subnet without the route and without outbound access would fetch its package in vain.
  depends_on = [
    azurerm_subnet_route_table_association.router,
    azurerm_subnet_network_security_group_association.router,
    azurerm_route.firewall,
  ]
}

output "router_subnet_prefix" {
  description = "The routers' subnet as a network: the source of the firewall's rules."
  value       = var.router_subnet_prefix
}

output "pls_subnet_id" {
  description = "The service's subnet."
  value       = azurerm_subnet.pls.id
  depends_on  = [azurerm_subnet_network_security_group_association.pls]
}

output "pls_subnet_prefix" {
  description = "The service's subnet as a network, for cidrhost()."
  value       = var.pls_subnet_prefix
}

output "firewall_private_ip_address" {
  description = "The next hop of the routers."
  value       = local.firewall_address
}

output "firewall_public_ip_addresses" {
  description = "The addresses that targets on the internet see; empty for an existing firewall."
  value       = azurerm_public_ip.firewall[*].ip_address
}

output "firewall_policy_id" {
  description = "The policy that has the rules; null for an existing firewall whose owners write them."
  value       = local.firewall_policy
}

output "route_table_id" {
  description = "The routers' route table."
  value       = azurerm_route_table.router.id
}

output "next_steps" {
  description = "What a person still does, and where."
  value = join("\n", compact([
    "Network:",
    local.peer_from_hub ? "" : "- The hub's owners: az network vnet peering create --resource-group ${local.hub_group} --vnet-name ${local.hub_name} --name to-${var.name} --remote-vnet ${azurerm_virtual_network.this.id} --allow-vnet-access --allow-forwarded-traffic",
    local.rules_are_managed ? "" : "- The firewall's owners: allow HTTPS:443 from ${var.router_subnet_prefix} to ${join(", ", concat(var.allowed_fqdns, flatten(var.application_rules[*].fqdns)))}, by application rules.",
    "- Look at the effective routes of a router's NIC: 0.0.0.0/0 leads to ${local.firewall_address}, state Active.",
  ]))
}
