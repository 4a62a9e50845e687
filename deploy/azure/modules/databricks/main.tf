# What Databricks has to know: which names lead to the Private Link Service, and for which
# workspaces. And the approval of what that makes on the service.

locals {
  config_id = (
    var.network_connectivity_config_id == null
    ? databricks_mws_network_connectivity_config.this[0].network_connectivity_config_id
    : var.network_connectivity_config_id
  )
  # Of each rule, its connection on the service: Databricks names the endpoint, Azure the
  # connection.
  connections = {
    for name, rule in databricks_mws_ncc_private_endpoint_rule.this : name => [
      for connection in try(data.azapi_resource.service[0].output.properties.privateEndpointConnections, []) :
      connection.name if endswith(lower(connection.properties.privateEndpoint.id), lower("/${rule.endpoint_name}"))
    ] if var.approve
  }
}

resource "databricks_mws_network_connectivity_config" "this" {
  count = var.network_connectivity_config_id == null ? 1 : 0

  name   = var.name
  region = var.location

  lifecycle {
    # Databricks writes its own and the endpoints' rules in here; none of them is ours to change.
    ignore_changes = [egress_config]
  }
}

resource "databricks_mws_ncc_private_endpoint_rule" "this" {
  for_each = var.endpoint_rules

  network_connectivity_config_id = local.config_id
  resource_id                    = var.private_link_service_id
  domain_names                   = each.value
}

resource "databricks_mws_ncc_binding" "this" {
  for_each = { for id in var.workspace_ids : tostring(id) => id }

  network_connectivity_config_id = local.config_id
  workspace_id                   = each.value
}

# Azure shows a new connection some time after Databricks has made it.
resource "time_sleep" "appear" {
  count = var.approve ? 1 : 0

  create_duration = var.approval_delay
  triggers        = { rules = join(",", sort([for rule in databricks_mws_ncc_private_endpoint_rule.this : rule.rule_id])) }
}

data "azapi_resource" "service" {
  count = var.approve ? 1 : 0

  type                   = "Microsoft.Network/privateLinkServices@2024-05-01"
  resource_id            = var.private_link_service_id
  response_export_values = ["properties.privateEndpointConnections"]
  depends_on             = [time_sleep.appear]
}

resource "azapi_update_resource" "approval" {
  for_each = var.approve ? var.endpoint_rules : {}

  type      = "Microsoft.Network/privateLinkServices/privateEndpointConnections@2024-05-01"
  parent_id = var.private_link_service_id
  name      = try(local.connections[each.key][0], "none")

  body = {
    properties = {
      privateLinkServiceConnectionState = {
        status      = "Approved"
        description = "${var.name}, rule ${each.key}"
      }
    }
  }

  lifecycle {
    precondition {
      condition     = length(local.connections[each.key]) == 1
      error_message = "The service has no connection of the endpoint of rule ${each.key} yet. Wait some minutes and apply again (or raise approval_delay); if it stays so, look at the rule's error_message in the account console."
    }
  }
}
