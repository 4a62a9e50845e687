# What reaches a router's NIC: the service's addresses on the forwarded ports, the probe, and SSH
# from the management networks. Nothing else, not even from the same network.

resource "azurerm_network_security_group" "this" {
  name                = "${var.name}-nsg"
  location            = var.location
  resource_group_name = var.resource_group_name
  tags                = var.tags
}

resource "azurerm_network_security_rule" "forwards" {
  # One rule for each protocol, so that a new forward never collides with another's priority.
  for_each = { for f in var.forwards : f.protocol => f.listen... }

  name                        = "forwards-${each.key}"
  resource_group_name         = var.resource_group_name
  network_security_group_name = azurerm_network_security_group.this.name
  direction                   = "Inbound"
  access                      = "Allow"
  priority                    = each.key == "tcp" ? 200 : 201
  protocol                    = each.key == "tcp" ? "Tcp" : "Udp"
  source_address_prefixes     = var.pls_nat_addresses
  source_port_range           = "*"
  destination_address_prefix  = "*"
  destination_port_ranges     = each.value
}

resource "azurerm_network_security_rule" "probe" {
  name                        = "probe"
  resource_group_name         = var.resource_group_name
  network_security_group_name = azurerm_network_security_group.this.name
  direction                   = "Inbound"
  access                      = "Allow"
  priority                    = 100
  protocol                    = "Tcp"
  source_address_prefix       = "AzureLoadBalancer"
  source_port_range           = "*"
  destination_address_prefix  = "*"
  destination_port_range      = tostring(var.health_port)
}

resource "azurerm_network_security_rule" "ssh" {
  count = length(var.management_sources) == 0 ? 0 : 1

  name                        = "ssh"
  resource_group_name         = var.resource_group_name
  network_security_group_name = azurerm_network_security_group.this.name
  direction                   = "Inbound"
  access                      = "Allow"
  priority                    = 110
  protocol                    = "Tcp"
  source_address_prefixes     = var.management_sources
  source_port_range           = "*"
  destination_address_prefix  = "*"
  destination_port_range      = "22"
}

# Before Azure's own rule that admits the whole virtual network and its peers.
resource "azurerm_network_security_rule" "deny" {
  name                        = "deny-the-rest"
  resource_group_name         = var.resource_group_name
  network_security_group_name = azurerm_network_security_group.this.name
  direction                   = "Inbound"
  access                      = "Deny"
  priority                    = 4096
  protocol                    = "*"
  source_address_prefix       = "*"
  source_port_range           = "*"
  destination_address_prefix  = "*"
  destination_port_range      = "*"
}
