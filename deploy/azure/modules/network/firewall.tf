# The hub with its firewall, unless there is one, and the rules. Azure Firewall denies what no rule
# allows; so there are rules that allow and no others.

resource "azurerm_virtual_network" "hub" {
  count = local.new_hub ? 1 : 0

  name                = "${var.name}-hub"
  location            = var.location
  resource_group_name = local.resource_group_name
  address_space       = [var.hub_address_space]
  tags                = var.tags
}

resource "azurerm_subnet" "firewall" {
  count = local.new_hub ? 1 : 0

  # Azure wants this name.
  name                            = "AzureFirewallSubnet"
  resource_group_name             = local.resource_group_name
  virtual_network_name            = azurerm_virtual_network.hub[0].name
  address_prefixes                = [var.firewall_subnet_prefix]
  default_outbound_access_enabled = false
}

resource "azurerm_public_ip" "firewall" {
  count = local.new_hub ? var.firewall_public_ip_count : 0

  name                = "${var.name}-firewall-${count.index}"
  location            = var.location
  resource_group_name = local.resource_group_name
  allocation_method   = "Static"
  sku                 = "Standard"
  zones               = local.zones
  tags                = var.tags
}

resource "azurerm_firewall_policy" "this" {
  count = local.new_hub ? 1 : 0

  name                     = "${var.name}-policy"
  location                 = var.location
  resource_group_name      = local.resource_group_name
  sku                      = var.firewall_sku_tier
  threat_intelligence_mode = "Deny"
  tags                     = var.tags
}

resource "azurerm_firewall" "this" {
  count = local.new_hub ? 1 : 0

  name                = "${var.name}-firewall"
  location            = var.location
  resource_group_name = local.resource_group_name
  sku_name            = "AZFW_VNet"
  sku_tier            = var.firewall_sku_tier
  firewall_policy_id  = azurerm_firewall_policy.this[0].id
  zones               = local.zones
  tags                = var.tags

  dynamic "ip_configuration" {
    for_each = { for i, ip in azurerm_public_ip.firewall : i => ip.id }
    content {
      name                 = "public-${ip_configuration.key}"
      public_ip_address_id = ip_configuration.value
      # The subnet is that of the first, and of the firewall.
      subnet_id = ip_configuration.key == "0" ? azurerm_subnet.firewall[0].id : null
    }
  }
}

resource "azurerm_firewall_policy_rule_collection_group" "this" {
  count = local.rules_are_managed && length(var.allowed_fqdns) + length(var.application_rules) + length(var.network_rules) > 0 ? 1 : 0

  name               = var.name
  firewall_policy_id = local.firewall_policy
  priority           = var.rules_priority

  dynamic "network_rule_collection" {
    for_each = length(var.network_rules) == 0 ? [] : [var.network_rules]
    content {
      name     = "${var.name}-networks"
      priority = 100
      action   = "Allow"

      dynamic "rule" {
        for_each = network_rule_collection.value
        content {
          name                  = rule.value.name
          protocols             = rule.value.protocols
          source_addresses      = [var.router_subnet_prefix]
          destination_addresses = rule.value.destinations
          destination_ports     = rule.value.ports
        }
      }
    }
  }

  dynamic "application_rule_collection" {
    for_each = length(var.allowed_fqdns) + length(var.application_rules) == 0 ? [] : [true]
    content {
      name     = "${var.name}-names"
      priority = 200
      action   = "Allow"

      dynamic "rule" {
        for_each = concat(
          length(var.allowed_fqdns) == 0 ? [] : [{
            name      = "https"
            fqdns     = var.allowed_fqdns
            protocols = [{ type = "Https", port = 443 }]
          }],
          var.application_rules
        )
        content {
          name              = rule.value.name
          source_addresses  = [var.router_subnet_prefix]
          destination_fqdns = rule.value.fqdns

          dynamic "protocols" {
            for_each = rule.value.protocols
            content {
              type = protocols.value.type
              port = protocols.value.port
            }
          }
        }
      }
    }
  }
}

resource "azurerm_monitor_diagnostic_setting" "firewall" {
  count = local.new_hub && var.log_analytics_workspace_id != null ? 1 : 0

  name                           = "${var.name}-firewall"
  target_resource_id             = azurerm_firewall.this[0].id
  log_analytics_workspace_id     = var.log_analytics_workspace_id
  log_analytics_destination_type = "Dedicated"

  enabled_log {
    category_group = "allLogs"
  }
}
