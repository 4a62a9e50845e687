# The routers' virtual network: two subnets, of which one has a route to the firewall.

locals {
  resource_group_name = (
    var.resource_group_name == null ? azurerm_resource_group.this[0].name : var.resource_group_name
  )
  new_hub           = var.existing_hub == null
  firewall_address  = local.new_hub ? azurerm_firewall.this[0].ip_configuration[0].private_ip_address : var.existing_hub.firewall_private_ip_address
  firewall_policy   = local.new_hub ? azurerm_firewall_policy.this[0].id : var.existing_hub.firewall_policy_id
  hub_id            = local.new_hub ? azurerm_virtual_network.hub[0].id : var.existing_hub.virtual_network_id
  hub_name          = local.new_hub ? azurerm_virtual_network.hub[0].name : split("/", var.existing_hub.virtual_network_id)[8]
  hub_group         = local.new_hub ? local.resource_group_name : split("/", var.existing_hub.virtual_network_id)[4]
  peer_from_hub     = local.new_hub || try(var.existing_hub.peer_from_hub, true)
  management_rules  = length(var.management_sources) == 0 ? 0 : 1
  zones             = length(var.zones) == 0 ? null : var.zones
  rules_are_managed = local.new_hub || try(var.existing_hub.firewall_policy_id, null) != null
}

resource "azurerm_resource_group" "this" {
  count = var.resource_group_name == null ? 1 : 0

  name     = "${var.name}-rg"
  location = var.location
  tags     = var.tags
}

resource "azurerm_virtual_network" "this" {
  name                = "${var.name}-vnet"
  location            = var.location
  resource_group_name = local.resource_group_name
  address_space       = [var.address_space]
  tags                = var.tags
}

resource "azurerm_subnet" "router" {
  name                            = "router"
  resource_group_name             = local.resource_group_name
  virtual_network_name            = azurerm_virtual_network.this.name
  address_prefixes                = [var.router_subnet_prefix]
  default_outbound_access_enabled = false
}

resource "azurerm_subnet" "pls" {
  name                            = "pls"
  resource_group_name             = local.resource_group_name
  virtual_network_name            = azurerm_virtual_network.this.name
  address_prefixes                = [var.pls_subnet_prefix]
  default_outbound_access_enabled = false
  # Azure makes no Private Link Service in a subnet that has them.
  private_link_service_network_policies_enabled = false
}

resource "azurerm_route_table" "router" {
  name                = "${var.name}-router"
  location            = var.location
  resource_group_name = local.resource_group_name
  # A default route that a gateway learns must not lead around the firewall.
  bgp_route_propagation_enabled = false
  tags                          = var.tags
}

resource "azurerm_route" "firewall" {
  name                   = "everything-to-the-firewall"
  resource_group_name    = local.resource_group_name
  route_table_name       = azurerm_route_table.router.name
  address_prefix         = "0.0.0.0/0"
  next_hop_type          = "VirtualAppliance"
  next_hop_in_ip_address = local.firewall_address
}

# The only association: with this route on the service's subnet its answers would go astray.
resource "azurerm_subnet_route_table_association" "router" {
  subnet_id      = azurerm_subnet.router.id
  route_table_id = azurerm_route_table.router.id
}

resource "azurerm_virtual_network_peering" "to_hub" {
  name                         = "to-hub"
  resource_group_name          = local.resource_group_name
  virtual_network_name         = azurerm_virtual_network.this.name
  remote_virtual_network_id    = local.hub_id
  allow_virtual_network_access = true
  allow_forwarded_traffic      = true
}

resource "azurerm_virtual_network_peering" "from_hub" {
  count = local.peer_from_hub ? 1 : 0

  name                         = "to-${var.name}"
  resource_group_name          = local.hub_group
  virtual_network_name         = local.hub_name
  remote_virtual_network_id    = azurerm_virtual_network.this.id
  allow_virtual_network_access = true
  allow_forwarded_traffic      = true
}
