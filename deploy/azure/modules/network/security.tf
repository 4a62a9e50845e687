# The subnets' network security groups. A router's NIC has one of its own (modules/router), which
# knows the forwarded ports.

resource "azurerm_network_security_group" "router" {
  name                = "${var.name}-router-subnet"
  location            = var.location
  resource_group_name = local.resource_group_name
  tags                = var.tags
}

resource "azurerm_network_security_rule" "service" {
  name                        = "private-link-service"
  resource_group_name         = local.resource_group_name
  network_security_group_name = azurerm_network_security_group.router.name
  direction                   = "Inbound"
  access                      = "Allow"
  priority                    = 200
  protocol                    = "*"
  source_address_prefix       = var.pls_subnet_prefix
  source_port_range           = "*"
  destination_address_prefix  = var.router_subnet_prefix
  destination_port_range      = "*"
}

resource "azurerm_network_security_rule" "probe" {
  name                        = "probe"
  resource_group_name         = local.resource_group_name
  network_security_group_name = azurerm_network_security_group.router.name
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
  count = local.management_rules

  name                        = "ssh"
  resource_group_name         = local.resource_group_name
  network_security_group_name = azurerm_network_security_group.router.name
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
resource "azurerm_network_security_rule" "router_deny" {
  name                        = "deny-the-rest"
  resource_group_name         = local.resource_group_name
  network_security_group_name = azurerm_network_security_group.router.name
  direction                   = "Inbound"
  access                      = "Deny"
  priority                    = 4096
  protocol                    = "*"
  source_address_prefix       = "*"
  source_port_range           = "*"
  destination_address_prefix  = "*"
  destination_port_range      = "*"
}

resource "azurerm_subnet_network_security_group_association" "router" {
  subnet_id                 = azurerm_subnet.router.id
  network_security_group_id = azurerm_network_security_group.router.id
}

# The service itself is not subject to it (its network policies are off): for whatever else someone
# may put into this subnet.
resource "azurerm_network_security_group" "pls" {
  name                = "${var.name}-pls-subnet"
  location            = var.location
  resource_group_name = local.resource_group_name
  tags                = var.tags
}

resource "azurerm_network_security_rule" "pls_deny" {
  name                        = "deny-the-rest"
  resource_group_name         = local.resource_group_name
  network_security_group_name = azurerm_network_security_group.pls.name
  direction                   = "Inbound"
  access                      = "Deny"
  priority                    = 4096
  protocol                    = "*"
  source_address_prefix       = "*"
  source_port_range           = "*"
  destination_address_prefix  = "*"
  destination_port_range      = "*"
}

resource "azurerm_subnet_network_security_group_association" "pls" {
  subnet_id                 = azurerm_subnet.pls.id
  network_security_group_id = azurerm_network_security_group.pls.id
}
